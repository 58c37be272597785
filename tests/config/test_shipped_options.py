"""The shipped files load, say what the paper says, and refuse every misspelt key with its line."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

import make_options
import pytest
from option_files.super_resolution import TABLES, methods_of, rows_of

from basicsr.archs import build_network
from basicsr.config import yaml_files
from basicsr.config.load import load_options, load_test_options, resolved_yaml
from basicsr.config.yaml_files import dump_yaml, load_yaml
from basicsr.distill.contrastive import HybridContrastive
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.text import key_text

OPTIONS = Path(__file__).resolve().parents[2] / "options"
BACKBONES = ("edsr", "rcan", "swinir")
FREE_NAMES = (("networks",), ("val", "metrics"), ("train", "distill"))


def load(file):
    """The options, which there is nothing to warn of."""
    doubts = []
    if file.parent.name in ("train", "recipes"):
        options = load_options(file, training=True, paths=False, warn=doubts.append)
    else:
        options = load_test_options(file, paths=False, warn=doubts.append)[0]
    assert doubts == []
    return options


def misspelt(key: str) -> str:
    return f"{key[0]}q{key[1:]}"


def with_misspelt_keys(content, selected, key=()):
    """The content with the keys in `selected` misspelt, and the new paths of those keys."""
    if not isinstance(content, dict):
        return content, set()
    result, paths = {}, set()
    for name, value in content.items():
        path = (*key, name)
        written = misspelt(name) if path in selected else name
        inner, inner_paths = with_misspelt_keys(value, selected, path)
        result[written] = inner
        paths |= {(written, *rest) for rest in inner_paths} | ({(written,)} if path in selected else set())
    return result, paths


def groups_of_keys(document):
    """The keys to misspell, grouped so that no mistake hides another: by depth, `type` apart."""
    keys = [key for key in document.positions() if key[:-1] not in FREE_NAMES]
    for depth in range(1, 1 + max(map(len, keys))):
        for is_type in (False, True):
            group = {key for key in keys if len(key) == depth and (key[-1] == "type") is is_type}
            if group:
                yield group


def test_the_files_of_the_papers_tables_are_all_there():
    def named(methods, *networks):
        return {f"train/{m}_{n}_x{s}" for m in methods.split() for n in networks for s in (2, 3, 4)}

    expected = named("scratch teacher kd fakd dukd mipkd mcadkd", *BACKBONES)
    expected |= named("fitnet at rkd", "edsr", "rcan") | named("csd", "edsr") | named("dckd", "rcan", "swinir")
    expected |= {f"train/dckd_dukd_{network}_x4" for network in ("rcan", "swinir")}
    expected |= named("mcadkd_as_published", "edsr", "swinir") | named("mcadkd_equations", *BACKBONES)
    expected |= named("dckd_as_published", "rcan", "swinir")
    of_table_5 = "scratch kd fitnet fakd fakd_csd csd_fakd mipkd_mipkd"
    expected |= {f"train/{row}_edsr_c64b16_x4" for row in of_table_5.split()}
    restored = [("nafnet", "gopro"), ("restormer", "gopro"), ("restormer", "rain13k")]
    expected |= {f"train/{m}_{n}_{t}" for m in ("teacher", "scratch", "kd", "dckd") for n, t in restored}
    expected |= {f"test/{network}_{task}" for network, task in restored} | {"test/edsr_c64b16_x4"}
    expected |= {f"test/{b}_x{s}" for b in BACKBONES for s in (2, 3, 4)}
    expected |= {f"test/{b}" for b in BACKBONES}
    expected |= {"train/quickstart_teacher", "train/quickstart_scratch", "train/quickstart_mcadkd", "test/quickstart"}
    there = {f"{file.parent.name}/{file.stem}" for file in OPTIONS.glob("t*/*.yml")}
    assert expected <= there


def test_every_file_but_the_quickstarts_is_as_one_script_writes_it():
    made = make_options.files()
    others = {file for file in OPTIONS.glob("t*/*.yml") if "quickstart" not in file.stem}
    assert set(made) == others
    for path, text in made.items():
        assert path.read_text("utf-8") == text, f"{path.name} differs: run scripts/make_options.py"


@pytest.mark.parametrize("network", BACKBONES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_neighbours_in_a_table_differ_in_their_methods_alone(network, scale):
    def without_method(name):
        data = load_yaml(OPTIONS / f"train/{name}_{network}_x{scale}.yml").data()
        schedule = {
            key: data["train"][key] for key in ("total_iter", "optim_g", "scheduler", "warmup_iter", "ema_decay")
        }
        data["network_g"].pop("res_scale", None)  # CSD's student shares its weights with the teacher
        batch = data["datasets"]["train"].pop("batch_size_per_gpu")
        tables = [table for table, pieces in TABLES[network].items() if name in pieces.split()]
        assert batch == (32 if any("MCAD-KD" in table for table in tables) else 16), name
        kept = {key: value for key, value in data.items() if key not in ("name", "model_type", "train", "network_d")}
        return {**kept, "schedule": schedule}

    first = without_method("kd")
    for piece in methods_of(network, scale):
        other = without_method(piece)
        if piece == "scratch":
            assert other["network_t"] is None
            other = {**other, "network_t": first["network_t"], "path": first["path"]}
        assert other == first, piece


def test_shipped_file_loads_and_its_copy_loads_to_equal_options(shipped, tmp_path):
    options = load(shipped)
    assert options.name in (shipped.stem, f"{shipped.stem}_x{options.scale}")
    copied = tmp_path / shipped.parent.name / "copy.yml"
    copied.parent.mkdir()
    copied.write_text(resolved_yaml(options))
    assert load(copied) == options


def test_shipped_file_begins_with_its_schema_and_what_it_reproduces(shipped):
    schema, purpose = shipped.read_text().splitlines()[:2]
    assert schema == "# yaml-language-server: $schema=../schema.json"
    assert "Table" in purpose or "no table" in purpose or shipped.parent.name == "recipes"


def test_shipped_file_refuses_every_misspelt_key_with_its_line(shipped_with_new_keys, tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_files, "_MOST_PLACES", 10**6)  # equal mistakes share a line, which names some of them
    document = load_yaml(shipped_with_new_keys)
    file = tmp_path / shipped_with_new_keys.parent.name / "misspelt.yml"
    file.parent.mkdir()
    for group in groups_of_keys(document):
        content, paths = with_misspelt_keys(document.data(), group)
        file.write_text(dump_yaml(content))
        positions = load_yaml(file).positions()
        with pytest.raises(OptionsError) as caught:
            load(file)
        message = str(caught.value)
        for path in paths:
            own = f"{positions[path]}: {key_text(path)}: unknown key"
            assert own in message or f"{key_text(path)} (line {positions[path].line})" in message


def test_a_misspelt_key_of_a_shared_piece_is_found_in_the_shared_file(tmp_path):
    for name in ("networks", "methods"):
        os.symlink(OPTIONS / name, tmp_path / name)
    (tmp_path / "train").mkdir()
    (tmp_path / "base").mkdir()
    for file in (OPTIONS / "base").iterdir():
        (tmp_path / "base" / file.name).write_text(file.read_text().replace("use_hflip", "use_hflp"))
    leaf = tmp_path / "train" / "a.yml"
    leaf.write_text((OPTIONS / "train" / "mcadkd_edsr_x2.yml").read_text())
    shared = tmp_path / "base" / "div2k.yml"
    line = shared.read_text().splitlines().index("use_hflp: true") + 1
    with pytest.raises(OptionsError) as caught:
        load(leaf)
    assert f"{shared}:{line}: datasets.train.use_hflp: unknown key (did you mean 'use_hflip'?)" in str(caught.value)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_training_files_follow_the_paper(backbone, scale):
    mcadkd = load(OPTIONS / f"train/mcadkd_{backbone}_x{scale}.yml")
    scratch = load(OPTIONS / f"train/scratch_{backbone}_x{scale}.yml")
    teacher = load(OPTIONS / f"train/teacher_{backbone}_x{scale}.yml")
    for options in (mcadkd, scratch, teacher):
        train = options.datasets["train"]
        assert (train.arguments["gt_size"], train.batch_size_per_gpu) == (48 * scale, 32)
        assert train.arguments["dataroot_lq"].endswith(f"/X{scale}")
        assert options.train.total_iter == 250_000
        assert dict(options.train.optim_g) == {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": (0.9, 0.99)}
        assert dict(options.train.scheduler) == {"type": "MultiStepLR", "milestones": (100_000, 200_000), "gamma": 0.1}
        assert {metric["crop_border"] for metric in options.val.metrics.values()} == {scale}
    assert (mcadkd.network_g, mcadkd.network_t) == (scratch.network_g, teacher.network_g)
    train = mcadkd.train
    assert train.pixel_opt["loss_weight"] == 3.0
    assert train.distill["response"]["criterion"]["loss_weight"] == 0.5
    assert train.adversarial_opt["loss_weight"] == 0.01
    assert dict(train.distill["contrastive"]) == {
        "type": "HybridContrastive", "mode": "hybrid", "patch_size": 48, "num_patches": 8, "image_weight": 0.3,
        "patch_weight": 0.7,
        "loss_weight": 0.05, "tau": 0.07, "mining": "hard",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "millions"),
    [
        ("teacher_edsr_x4", 43.09),
        ("scratch_edsr_x4", 2.70),
        ("teacher_rcan_x4", 15.59),
        ("scratch_rcan_x4", 5.17),
        ("teacher_swinir_x4", 11.90),
        ("scratch_swinir_x4", 1.24),
        ("scratch_edsr_c64b16_x4", 1.52),
        ("teacher_nafnet_gopro", 17.11),
        ("scratch_nafnet_gopro", 2.68),
        ("teacher_restormer_gopro", 26.13),
        ("scratch_restormer_rain13k", 3.81),
    ],
)
def test_networks_have_the_parameters_of_the_papers_tables(file, millions):
    network = build_network(load(OPTIONS / f"train/{file}.yml").network_g)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


def losses(train):
    return [train.pixel_opt, train.distill["response"]["criterion"], train.adversarial_opt]


@pytest.mark.parametrize("backbone", ["edsr", "swinir"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_as_published_files_set_every_deviation_of_the_public_code(backbone, scale):
    published = load(OPTIONS / f"train/mcadkd_as_published_{backbone}_x{scale}.yml")
    paper = load(OPTIONS / f"train/mcadkd_{backbone}_x{scale}.yml")
    train = published.train
    for own, others in zip(losses(train), losses(paper.train), strict=True):
        assert own["loss_weight"] == pytest.approx(others["loss_weight"] ** 2)
    contrastive = train.distill["contrastive"]
    assert contrastive["loss_weight"] == paper.train.distill["contrastive"]["loss_weight"] == 0.05
    assert (contrastive["train_heads"], contrastive["crops"], contrastive["mining"]) == (False, "independent", "all")
    assert (contrastive["denominator"], contrastive["patch_negatives"]) == ("negatives", "batch")
    assert (contrastive["gather_negatives"], contrastive["reduction"]) == (False, "mean")
    assert train.train_adversary is False
    second = 400_000 if backbone == "edsr" else 375_000
    assert train.total_iter == 500_000
    assert dict(train.scheduler) == {
        "type": "MultiStepLR", "milestones": (250_000, second, 450_000, 475_000), "gamma": 0.5,
    }  # fmt: skip
    assert (train.ema_decay, published.val.self_ensemble) == ((0, True) if backbone == "edsr" else (0.999, False))
    if backbone == "edsr":
        assert (train.optim_g["lr"], published.network_g["res_scale"]) == (1e-3, 0.1)
    assert published.network_t == paper.network_t


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_equations_files_differ_from_the_others_in_mining_and_sum_alone(backbone, scale):
    equations = load(OPTIONS / f"train/mcadkd_equations_{backbone}_x{scale}.yml")
    others = load(OPTIONS / f"train/mcadkd_{backbone}_x{scale}.yml")
    contrastive = dict(equations.train.distill["contrastive"])
    assert (contrastive["mining"], contrastive["reduction"]) == ("all", "sum")
    own = HybridContrastive(**{key: value for key, value in contrastive.items() if key != "type"})
    default = HybridContrastive()
    assert own.weights == default.weights
    settings = [{**vars(term), **term._info_nce.keywords} for term in (own, default)]
    differing = {key for key, value in settings[1].items() if key[0] != "_" and settings[0][key] != value}
    assert differing == {"mining", "reduction"}
    update = {"distill": others.train.distill}
    assert equations.model_copy(
        update={"name": others.name, "train": equations.train.model_copy(update=update)}
    ) == others.model_copy(update={"train": others.train.model_copy(update=update)})


@pytest.mark.parametrize("backbone", ["rcan", "swinir"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_dckd_follows_its_paper_or_its_public_code(backbone, scale):
    paper = load(OPTIONS / f"train/dckd_{backbone}_x{scale}.yml")
    published = load(OPTIONS / f"train/dckd_as_published_{backbone}_x{scale}.yml")
    for options in (paper, published):
        train = options.datasets["train"]
        assert (train.arguments["gt_size"], train.batch_size_per_gpu) == (48 * scale, 16)
        assert options.train.total_iter == 250_000
        assert [loss["loss_weight"] for loss in losses(options.train)[:2]] == [1, 1]
    assert dict(paper.train.distill["dckd"]) == {"type": "DCKD"}
    assert (paper.train.ema_decay, paper.train.scheduler["milestones"]) == (0, (100_000, 200_000))
    assert (published.train.ema_decay, published.train.scheduler["milestones"]) == (0.999, (250_000,))
    assert dict(published.train.distill["consistency"]) == {
        "type": "LabelConsistency", "probability": 0.5, "loss_weight": 1.0,
    }  # fmt: skip
    assert dict(published.train.distill["dckd"]) == {
        "type": "DCKD", "history_of": "average", "include_undegraded": True, "input_range": (0, 1),
        "quotient": "batch", "double_softmax": True,
    }  # fmt: skip
    assert published.network_g == paper.network_g


@pytest.mark.parametrize("piece", ["dukd", "dckd_dukd"])
def test_true_images_weigh_alike_in_every_file_with_zoom_out(piece):
    """DUKD's two losses against true images, L1(I_S, I_GT) and zoom-out's L1(S(Y), I_LR), have one weight."""
    files = [OPTIONS / f"methods/{piece}.yml", *sorted(OPTIONS.glob(f"train/{piece}_*.yml"))]
    found = []
    for file in files:
        train = load_yaml(file).data()["train"]
        method = METHOD_REGISTRY.build(train["distill"]["dukd"])
        if method.zoom_out:
            found.append((train["pixel_opt"]["loss_weight"], method.weights["l_zoom_out_pix"]))
    assert set(found) == {(5.0, 5.0) if piece == "dukd" else (1.0, 1.0)}


@pytest.mark.parametrize("task", ["gopro", "rain13k"])
def test_restormers_teacher_has_its_authors_schedule_and_the_students_that_of_dckds_appendix(task):
    teacher = load(OPTIONS / f"train/teacher_restormer_{task}.yml").train
    student = load(OPTIONS / f"train/dckd_restormer_{task}.yml").train
    assert dict(teacher.scheduler) == {
        "type": "CosineAnnealingRestartCyclicLR", "periods": (92_000, 208_000), "restart_weights": (1, 1),
        "eta_mins": (3e-4, 1e-6),
    }  # fmt: skip
    assert dict(student.scheduler) == {"type": "CosineAnnealingLR", "T_max": 300_000, "eta_min": 1e-6}
    assert teacher.optim_g == student.optim_g and teacher.total_iter == student.total_iter == 300_000


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_test_files_compare_what_the_training_files_leave(backbone, scale):
    options = load(OPTIONS / f"test/{backbone}_x{scale}.yml")
    assert [dataset.name for dataset in options.datasets.values()] == [
        "Set5",
        "Set14",
        "BSD100",
        "Urban100",
        "Manga109",
    ]
    rows = rows_of(backbone)
    assert list(options.networks) == ["bicubic", "teacher", *rows]
    mcadkd = load(OPTIONS / f"train/mcadkd_{backbone}_x{scale}.yml")
    assert fnmatch(mcadkd.path.pretrain_network_t, options.networks["teacher"].path)
    assert options.networks["teacher"].network == mcadkd.network_t
    for row in rows:
        if row != "dckd_dukd" or scale == 4:
            trained = load(OPTIONS / f"train/{row}_{backbone}_x{scale}.yml")
            assert Path(options.networks[row].path) == trained.models_folder / "net_g_latest.pth"
            assert options.networks[row].network == trained.network_g
            averaged = trained.train.ema_decay > 0
            assert options.networks[row].param_key == ("params_ema" if averaged else "params")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_file_tests_all_scales_of_a_table(backbone):
    loaded = load_test_options(OPTIONS / f"test/{backbone}.yml", paths=False)
    assert [options.scale for options in loaded] == [2, 3, 4]
    for options in loaded:
        single = load(OPTIONS / f"test/{backbone}_x{options.scale}.yml")
        assert options == single.model_copy(update={"name": backbone})
        assert {metric["crop_border"] for metric in options.val.metrics.values()} == {options.scale}
        for dataset in options.datasets.values():
            assert dataset.arguments["dataroot_lq"].endswith(f"{dataset.name}/LR_bicubic/X{options.scale}")
            assert dataset.arguments["filename_tmpl"] == f"{{}}x{options.scale}"


def test_quickstart_files_fit_together():
    mcadkd = load(OPTIONS / "train/quickstart_mcadkd.yml")
    teacher = load(OPTIONS / "train/quickstart_teacher.yml")
    scratch = load(OPTIONS / "train/quickstart_scratch.yml")
    assert (mcadkd.network_t, mcadkd.network_g) == (teacher.network_g, scratch.network_g)
    assert Path(mcadkd.path.pretrain_network_t) == teacher.models_folder / "net_g_latest.pth"
    assert mcadkd.train.total_iter == scratch.train.total_iter
    rows = load(OPTIONS / "test/quickstart.yml").networks
    for row, trained in (("teacher", teacher), ("scratch", scratch), ("mcadkd", mcadkd)):
        assert Path(rows[row].path) == trained.models_folder / "net_g_latest.pth"
        assert rows[row].network == trained.network_g

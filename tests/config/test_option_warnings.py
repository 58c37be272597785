"""What options look copied from another scale or length, or from another pair of folders: warned of, or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_run import EDSR

from basicsr.config import checks
from basicsr.config.load import load_options, load_test_options, no_warning
from basicsr.config.yaml_files import load_yaml
from basicsr.optim.optimizers import Ema
from basicsr.utils.errors import OptionsError

PAIR = """\
scale: 2
datasets:
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: Set5/HR
    dataroot_lq: Set5/LR/X2
"""


def network(scale: int) -> dict[str, Any]:
    return {**EDSR, "upscale": scale}


def training(scale: int = 3, **train: Any) -> dict[str, Any]:
    """Options that nothing is to be said of, but for what a test changes."""
    data = {"type": "PairedImageDataset", "dataroot_gt": "Set5/HR", "dataroot_lq": f"Set5/LR/X{scale}"}
    return {
        "name": f"student_x{scale}",
        "scale": scale,
        "datasets": {
            "train": {**data, "name": "train", "gt_size": 48, "num_worker_per_gpu": 1},
            "val": {**data, "name": "Set5", "filename_tmpl": "{}x{scale}"},
        },
        "network_g": network(scale),
        "train": {
            "total_iter": 200,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "pixel_opt": {"type": "L1Loss"},
            **train,
        },
        "val": {"val_freq": 100, "metrics": {"psnr": {"type": "calculate_psnr"}}},
    }


def distilling(**terms: Any) -> dict[str, Any]:
    options = training(distill=terms)
    return {**options, "model_type": "KDModel", "network_t": network(3), "path": {"pretrain_network_t": "t.pth"}}


def warnings(options: Any, **arguments: Any) -> list[str]:
    lines: list[str] = []
    load_options(options, training=True, paths=False, warn=lines.append, **arguments)
    return lines


def test_nothing_is_said_of_options_that_agree_with_each_other():
    for scale in (1, 2, 3, 4):
        assert warnings(training(scale)) == []
    ended = training(
        warmup_iter=20, ema_decay=0.98, scheduler={"type": "TrueCosineAnnealingLR", "T_max": 200, "eta_min": 1e-7}
    )
    assert warnings({**ended, "logger": {"save_checkpoint_freq": 10**9, "print_freq": 200}}) == []
    assert warnings(training(scheduler={"type": "MultiStepLR", "milestones": [100, 200]})) == []


@pytest.mark.parametrize(
    "override",
    [
        "name=student_x2",
        "name=2x_student",
        "datasets:val:dataroot_lq=Set5/LR/X2",
        "datasets:train:dataroot_lq=Set5/LR/x2",
        "datasets:val:filename_tmpl='{}x4'",
        "path:pretrain_network_g=EDSR_Lx2_f256b32_DIV2K_official.pth",
        "path:pretrain_network_g=RealESRGAN_x4plus.pth",
        "datasets:train:meta_info_file=names_x4.txt",
        "path:pretrain_network_g=4x-UltraMix.pth",
    ],
)
def test_a_text_that_names_another_scale_is_told(override):
    (line,) = warnings(training(), overrides=[override])
    key = override.partition("=")[0].replace(":", ".")
    assert line.startswith(f"--force_yml: {key}: ") and "but scale is 3" in line


def test_an_image_level_contrast_over_single_images_is_told(monkeypatch):
    file = Path(__file__).resolve().parents[2] / "options/train/mcadkd_edsr_x2.yml"
    single = "datasets:train:batch_size_per_gpu=1"
    (line,) = warnings(file, overrides=[single])
    assert "train.contrastive_opt.type: is hybrid, but batch_size_per_gpu is 1: the contrast of whole images" in line
    assert warnings(file) == warnings(file, overrides=[single, "train:contrastive_opt:type=patch"]) == []
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert warnings(file, overrides=[single]) == []
    assert len(warnings(file, overrides=[single, "train:contrastive_opt:gather_negatives=false"])) == 1


@pytest.mark.parametrize(
    "name", ["f48x48", "box2", "x264", "student_x3_from_x2", "index2", "exp_2020x3", "a_12x", "X4K1000FPS", "X2Y"]
)
def test_what_names_no_scale_or_also_the_right_one_is_not_told(name):
    assert warnings({**training(), "name": name}) == []


def test_weights_of_another_scale_to_start_from_are_usual_where_they_need_not_fit():
    start = {**training(), "path": {"pretrain_network_g": "edsr_x2.pth", "strict_load_g": False}}
    assert warnings(start) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scheduler": {"type": "TrueCosineAnnealingLR", "T_max": 1000}},
         "train.scheduler.T_max: takes 1000 iterations, but total_iter is 200: training ends before"),
        ({"scheduler": {"type": "CosineAnnealingLR", "T_max": 100}},
         "train.scheduler.T_max: is 100, but total_iter is 200: the last 100 iterations run at eta_min 0, which"),
        ({"scheduler": {"type": "CosineAnnealingRestartLR", "periods": [300, 300], "restart_weights": [1, 1]}},
         "train.scheduler.periods: takes 600 iterations, but total_iter is 200"),
        ({"scheduler": {"type": "MultiStepLR", "milestones": [250, 400]}},
         "train.scheduler.milestones: [250, 400] is not reached within total_iter 200: the rate never changes"),
        ({"scheduler": {"type": "MultiStepLR", "milestones": [100, 400]}},
         "train.scheduler.milestones: 400 comes after the end, as total_iter is 200"),
        ({"scheduler": {"type": "MultiStepRestartLR", "milestones": [100], "restarts": [500], "restart_weights": [1]}},
         "train.scheduler.restarts: [500] is not reached within total_iter 200"),
        ({"scheduler": {"type": "MultiStepLR", "milestones": [100], "gamma": 2}},
         "train.scheduler.gamma: is 2, above 1: the rate rises"),
        ({"scheduler": {"type": "CosineAnnealingLR", "T_max": 200, "eta_min": 0.01}},
         "train.scheduler.eta_min: is 0.01, above lr 0.001"),
        ({"warmup_iter": 200}, "train.warmup_iter: is 200, but total_iter is 200: training ends before the rate"),
        ({"ema_decay": 0.999}, "train.ema_decay: is 0.999: after total_iter 200 the average still holds 82% of"),
    ],
)  # fmt: skip
def test_a_length_that_is_not_the_runs_is_told(change, told):
    (line,) = warnings(training(**change))
    assert line.startswith(f"options: {told}")


def test_a_decay_that_is_advised_leaves_less_than_a_hundredth_and_is_not_warned_of():
    (line,) = warnings(training(total_iter=100_000, ema_decay=0.99999))
    assert line.endswith("holds 37% of the weights that training began with; take 0.99995 or less")
    assert 0.99995**100_000 < 0.01 and warnings(training(total_iter=100_000, ema_decay=0.99995)) == []


def test_a_validation_set_of_other_values_than_those_of_training_is_told():
    options = training()
    options["datasets"]["train"]["color"], options["datasets"]["val"]["color"] = "gray", "y"
    (line,) = warnings(options)
    assert "datasets.val.color: is 'y', but that of training is 'gray'" in line
    options["datasets"]["val"]["color"] = "gray"
    assert warnings(options) == []
    for dataset in ("train", "val"):
        options["datasets"][dataset].update(mean=[0.5], std=[0.5])
    assert warnings(options) == []
    del options["datasets"]["val"]["mean"]
    assert "datasets.val.mean: is None, but that of training is (0.5,)" in warnings(options)[0]


def test_the_share_of_the_first_weights_in_the_average_is_what_ema_leaves():
    start, end = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(start.weight)
    torch.nn.init.zeros_(end.weight)
    average = Ema(start, 0.999)
    for _ in range(200):
        average.update(end)
    assert f"{average.network.weight.item():.0%}" == "82%"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("val:val_freq=5000", "val.val_freq: is 5000, but total_iter is 200: it is evaluated at the end alone"),
        ("logger:save_checkpoint_freq=5000", "logger.save_checkpoint_freq: is 5000, but total_iter is 200"),
        ("logger:print_freq=500", "logger.print_freq: is 500, but total_iter is 200: it is logged at the end alone"),
        ("val:metrics:psnr:crop_border=2", "val.metrics.psnr.crop_border: is 2, but scale is 3: published figures"),
        ("crop_border=2", "--force_yml: crop_border: is 2, but scale is 3"),
        ("val={val_freq: 9, tile: 32, tile_overlap: 64, metrics: {a: {type: calculate_psnr}}}", "val.tile_overlap: is"),
        ("val:tile_overlap=8", "val.tile_overlap: is 8, but there is no val.tile: images are run whole"),
        ("network_d={type: UNetDiscriminatorSN, num_in_ch: 3}", "network_d: is not used, as there is no train.advers"),
        ("train:optim_d={type: Adam}", "train.optim_d: is not used, as there is no train.adversarial_opt"),
        ("path={pretrain_network_t: t.pth}", "path.pretrain_network_t: is not used, as model_type is SRModel"),
        ("datasets:val:name=Set14", "datasets.val.dataroot_gt: is a folder of Set5, but the dataset is named Set14"),
    ],
)
def test_other_values_copied_from_elsewhere_are_told(override, told):
    assert any(
        line.startswith(f"--force_yml: {told}") or told in line for line in warnings(training(), overrides=[override])
    )


def test_the_border_of_div2ks_challenges_is_known():
    assert warnings(training(), overrides=["crop_border=9"]) == []


def test_terms_say_what_does_not_fit_the_run():
    (line,) = warnings(distilling(a={"type": "DCKD", "vqgan_weights": "random"}))
    assert "train.distill.a.update_steps: begins with 1000, but total_iter is 200: the history model stays" in line
    (line,) = warnings(distilling(a={"type": "DCKD", "update_steps": [10, 20, 30], "period": 100}))
    assert "update_steps: has 3 entries, but total_iter 200 has 2 periods of 100" in line
    assert warnings(distilling(a={"type": "DCKD", "update_steps": [10, 20], "period": 100})) == []
    (line,) = warnings(distilling(a={"type": "MiPKD", "autoencoder_until": 1000}))
    assert "autoencoder_until: is 1000, after the end" in line
    other = {"teachers": [{"network": network(2), "path": "other.pth"}]}
    with pytest.raises(OptionsError, match=r"distill\.a\.teachers\[0\]\.network\.upscale: is 2, but scale is 3"):
        warnings(distilling(a={"type": "SeveralTeachers", **other}))
    for change, told in (({"num_patches": 10}, "num_patches: is 10, but at scale 3 an HR image has 9 tiles"),):
        with pytest.raises(OptionsError, match=told):
            warnings(distilling(a={"type": "DUKD", **change}))


def test_stages_that_are_not_reached_are_told():
    options = training()
    options["datasets"]["train"] |= {
        "gt_sizes": [24, 36, 48], "mini_batch_sizes": [2, 2, 1], "iters": [100, 100, 100], "batch_size_per_gpu": 2,
    }  # fmt: skip
    (line,) = warnings(options)
    assert "datasets.train.iters: has 3 stages, but total_iter 200 ends in stage 2" in line


def test_workers_are_held_against_the_machines_processors(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.os, "sched_getaffinity", lambda pid: {0, 1})
    assert warnings(training(), overrides=["datasets:train:num_worker_per_gpu=8"]) == []
    (line,) = warnings(training(), overrides=["datasets:train:num_worker_per_gpu=9"])
    assert "num_worker_per_gpu: is 9, but this machine has 2 processors" in line
    with pytest.raises(OptionsError, match=r"num_worker_per_gpu: is 65, but this machine has 2 processors; take 2"):
        load_options(training(), overrides=["datasets:train:num_worker_per_gpu=65"], training=True, root=tmp_path)


def test_warnings_of_tests_name_their_scale_and_go_to_the_log_by_default(caplog):
    options = training()
    tests = {key: options[key] for key in ("name", "val")} | {
        "scale": [2, 3, 8],
        "datasets": {"test": {**options["datasets"]["val"], "dataroot_lq": "Set5/LR/X{scale}"}},
        "networks": {"student": {"path": "student_x{scale}.pth", "network": {**EDSR, "upscale": "{scale}"}}},
        "report": {"published": "EDSR"},
    }
    tests["name"] = "table"
    lines: list[str] = []
    load_test_options(tests, paths=False, warn=lines.append)
    assert lines == ["options: report.published: has no figures of EDSR at scale 8; none are shown"]
    logger = logging.getLogger("basicsr")
    logger.addHandler(caplog.handler)  # whether or not the logger hands on what it gets
    try:
        load_test_options(tests, paths=False)
    finally:
        logger.removeHandler(caplog.handler)
    assert {(record.levelname, record.message) for record in caplog.records} == {("WARNING", lines[0])}


@pytest.fixture
def pair(tmp_path) -> Path:
    (tmp_path / "base.yml").write_text(PAIR)
    return tmp_path


def halves(folder: Path, text: str, *overrides: str) -> list[str]:
    """What is said of folders that were replaced alone in options of this text over base.yml."""
    file = folder / "own.yml"
    file.write_text(text)
    try:
        load_options(file, training=True, paths=False, overrides=overrides, warn=no_warning)
    except OptionsError as error:
        return [line for line in str(error).splitlines() if "would be taken for pairs" in line]
    return []


OVER_BASE = "_base_: base.yml\ndatasets:\n  val:\n    "


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (OVER_BASE + "dataroot_lq: mine\n", ()),
        (OVER_BASE + "dataroot_gt: mine\n", ()),
        ("_base_: base.yml\ndatasets: {val: {name: Mine, type: PairedImageDataset, dataroot_lq: mine}}\n", ()),
        ("_base_: base.yml\n", ("datasets:val:dataroot_lq=mine",)),
        ("_base_: base.yml\n", ("datasets:val:dataroot_gt=mine", "datasets:val:dataroot_gt=other")),
        (
            PAIR.replace("  val:", "  val: &v").replace("scale: 2\n", "")
            + "  val_2: {<<: *v, name: b, dataroot_lq: c}\n",
            (),
        ),
    ],
)
def test_a_folder_is_not_replaced_without_the_other_of_its_pair(pair, text, overrides):
    (line,) = halves(pair, text, *overrides)
    assert "replaces the folder of " in line and "give both" in line


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (OVER_BASE + "dataroot_lq: mine\n    dataroot_gt: mine\n", ()),
        (OVER_BASE + "dataroot_lq: mine\n    dataroot_gt: Set5/HR\n", ()),
        (OVER_BASE + "dataroot_lq: mine\n    dataroot_gt: ~\n", ()),
        (OVER_BASE + "dataroot_lq: Set5/LR/X2\n", ()),
        (OVER_BASE + "dataroot_lq: Set5/LR/X3\n", ()),
        ("_base_: base.yml\n", ("datasets:val:dataroot_lq=a", "datasets:val:dataroot_gt=b")),
        ("_base_: base.yml\ndatasets: {val: {type: SingleImageDataset, name: a, dataroot_lq: b}}\n", ()),
    ],
)
def test_both_folders_may_be_replaced_or_one_by_another_scale(pair, text, overrides):
    assert halves(pair, text, *overrides) == []


def test_halves_replaced_in_files_of_their_own_make_a_whole_and_are_told_where_not(pair):
    (pair / "middle.yml").write_text(OVER_BASE + "dataroot_lq: mine\n")
    assert halves(pair, "_base_: middle.yml\ndatasets:\n  val:\n    dataroot_gt: mine\n") == []
    (line,) = halves(pair, "_base_: middle.yml\nname: a\n")
    where, of = pair / "middle.yml", pair / "base.yml"
    assert line == (
        f"{where}:4: datasets.val.dataroot_lq: replaces the folder of {of}:7, but dataroot_gt is still 'Set5/HR' of"
        f" {of}:6: their images would be taken for pairs; give both (again where it is meant)"
    )
    assert load_yaml(pair / "middle.yml").data()["datasets"]["val"]["dataroot_lq"] == "mine"

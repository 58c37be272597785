"""The quickstart's data, options and the decisions about what is left to do."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from basicsr.config.load import load_options, load_test_options, resolved_yaml
from basicsr.files.images import imfrombytes
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.matlab_functions import imresize_integer

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = str(ROOT / "scripts/quickstart")
OPTIONS = ROOT / "options"


@pytest.fixture(scope="module", autouse=True)
def _scripts_can_be_imported():
    sys.path.insert(0, SCRIPTS)
    yield
    sys.path.remove(SCRIPTS)


@pytest.fixture(scope="module")
def photographs():
    return importlib.import_module("photographs")


@pytest.fixture(scope="module")
def steps():
    return importlib.import_module("steps")


@pytest.fixture(scope="module")
def data(photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made here") / "quickstart"
    assert photographs.ensure_dataset(folder, photographs.photographs_folder())
    return folder


def read(path: Path) -> np.ndarray:
    return imfrombytes(path.read_bytes(), source=str(path))


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def photographs_of(folder: Path) -> set[str]:
    return {stem.rpartition("_s")[0] for stem in stems(folder)}


def test_no_photograph_is_in_both_training_and_validation(photographs, data):
    training, validation = photographs_of(data / "train/HR"), stems(data / "val/HR")
    assert validation == {"astronaut", "chelsea", "coffee"}
    assert len(training) >= 5
    assert not training & validation
    sides = [{"motorcycle_left", "motorcycle_right"} & side for side in (training, validation)]
    assert sorted(map(len, sides)) == [0, 2]


@pytest.mark.parametrize("phase", ["train", "val"])
def test_each_hr_image_has_an_lr_image_of_half_its_size(data, phase):
    hr_folder, lr_folder = data / phase / "HR", data / phase / "LR_bicubic/X2"
    assert stems(lr_folder) == {f"{stem}x2" for stem in stems(hr_folder)}
    for path in hr_folder.iterdir():
        height, width, _ = read(path).shape
        assert height % 2 == width % 2 == 0
        assert read(lr_folder / f"{path.stem}x2.png").shape == (height // 2, width // 2, 3)


def test_hr_images_are_scikit_images_pixels_and_lr_images_shrunk_by_bicubic(data):
    from skimage import data as skimage_data

    original = skimage_data.chelsea()[:300, :450, ::-1]
    assert np.array_equal(read(data / "val/HR/chelsea.png"), original)
    assert np.array_equal(read(data / "val/LR_bicubic/X2/chelseax2.png"), imresize_integer(original, 0.5))


def test_tiles_are_cut_from_the_same_place_of_hr_and_lr(data):
    """The LR tile is the HR tile shrunk, but for the pixels whose kernel reaches beyond the tile."""
    for stem in ("motorcycle_left_s007", "rocket_s015"):
        shrunk = imresize_integer(read(data / f"train/HR/{stem}.png"), 0.5)
        tile = read(data / f"train/LR_bicubic/X2/{stem}x2.png")
        assert np.array_equal(tile[2:-2, 2:-2], shrunk[2:-2, 2:-2])


def test_the_dataset_is_the_same_every_time_and_made_once(photographs, data, tmp_path):
    again = tmp_path / "with space" / "quickstart"
    assert photographs.ensure_dataset(again, photographs.photographs_folder())
    assert digests(again) == digests(data)
    assert not photographs.ensure_dataset(again, photographs.photographs_folder())


def test_a_damaged_dataset_is_made_anew_and_the_old_one_kept(photographs, data, tmp_path):
    folder = tmp_path / "quickstart"
    photographs.ensure_dataset(folder, photographs.photographs_folder())
    (folder / "val/HR/chelsea.png").write_bytes(b"no image")
    assert photographs.ensure_dataset(folder, photographs.photographs_folder())
    assert digests(folder) == digests(data)
    (kept,) = tmp_path.glob("quickstart_archived_*")
    assert (kept / "val/HR/chelsea.png").read_bytes() == b"no image"


def test_a_dataset_of_the_users_own_is_left_alone(photographs, tmp_path):
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/a.png").write_text("a photograph")
    with pytest.raises(OptionsError, match=r"mine is there and holds something else \(train\), so it is not renamed"):
        photographs.ensure_dataset(tmp_path / "mine", photographs.photographs_folder())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_missing_photographs_are_told_in_one_line(photographs, tmp_path):
    with pytest.raises(DataError, match=r"photograph .*motorcycle_left\.png cannot be read") as caught:
        photographs.ensure_dataset(tmp_path / "quickstart", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "quickstart").exists()


def test_both_students_train_under_equal_conditions():
    load = {
        name: load_options(OPTIONS / f"train/quickstart_{name}.yml", training=True, paths=False)
        for name in ("scratch", "mcadkd")
    }
    for key in ("network_g", "datasets", "manual_seed", "amp", "channels_last", "val"):
        assert getattr(load["scratch"], key) == getattr(load["mcadkd"], key), key
    for key in ("total_iter", "optim_g", "scheduler", "warmup_iter", "ema_decay", "accumulate", "grad_clip"):
        assert getattr(load["scratch"].train, key) == getattr(load["mcadkd"].train, key), key


def test_the_distillation_keeps_the_papers_terms_and_weights():
    quick = load_options(OPTIONS / "train/quickstart_mcadkd.yml", training=True, paths=False).train
    paper = load_options(OPTIONS / "train/mcadkd_edsr_x2.yml", training=True, paths=False).train
    for key in ("pixel_opt", "adversarial_opt"):
        assert getattr(quick, key) == getattr(paper, key), key
    assert quick.distill["response"] == paper.distill["response"]
    smaller = {"patch_size": 24, "embed_dim": 32}
    assert dict(quick.distill["contrastive"]) == {**paper.distill["contrastive"], **smaller}


def test_the_schedule_ends_with_the_training():
    for name in ("teacher", "scratch", "mcadkd"):
        train = load_options(OPTIONS / f"train/quickstart_{name}.yml", training=True, paths=False).train
        assert train.scheduler["T_max"] == train.total_iter


@pytest.fixture
def training(steps, tmp_path):
    """Options of a training that has just begun, and one of its inputs."""
    file = OPTIONS / "train/quickstart_scratch.yml"
    options = load_options(file, training=True, paths=False, root=tmp_path)
    data = tmp_path / "manifest.json"
    data.write_text("{}")
    options.models_folder.mkdir(parents=True)
    (options.experiment_folder / f"{options.name}.yml").write_text(f"# header\n{resolved_yaml(options)}")
    return options, data


def test_an_interrupted_training_is_resumed_and_a_finished_one_left(steps, training):
    options, data = training
    assert steps.state_of(options, [data]) == "resume"
    steps.weights_of(options).touch()
    assert steps.state_of(options, [data]) == "done"


def test_a_training_starts_anew_where_there_is_none(steps, tmp_path):
    options = load_options(OPTIONS / "train/quickstart_scratch.yml", training=True, paths=False, root=tmp_path)
    assert steps.state_of(options, []) == "start"


def test_a_training_starts_anew_after_a_change_of_its_options(steps, training, tmp_path):
    options, data = training
    steps.weights_of(options).touch()
    file = OPTIONS / "train/quickstart_scratch.yml"
    changed = load_options(file, overrides=["manual_seed=1"], training=True, paths=False, root=tmp_path)
    assert steps.state_of(changed, [data]) == "start"


def test_a_training_starts_anew_after_a_change_of_its_data_or_teacher(steps, training):
    options, data = training
    steps.weights_of(options).touch()
    later = data.stat().st_mtime + 10
    os.utime(data, (later, later))
    assert steps.state_of(options, [data]) == "start"


def test_a_second_quickstart_is_refused(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with steps.only_one():
        with pytest.raises(ValueError, match="another quickstart is running"):
            with steps.only_one():
                pass
    with steps.only_one():
        pass


def test_the_script_refuses_unknown_arguments_before_installing_anything(tmp_path):
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), "--frsh"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert result.stdout.startswith("usage: bash scripts/quickstart.sh [--fresh]")


def test_all_trainings_run_in_the_precision_that_was_chosen_once(steps, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(steps, "OPTIONS", OPTIONS / "train")
    kept = '{"amp": "bf16", "amp_teacher": "bf16", "told": "amp auto: bf16"}'
    (tmp_path / steps.PRECISION).write_text(kept)
    assert steps.precision(fresh=False) == "bf16"
    assert (tmp_path / steps.PRECISION).read_text() == kept
    assert "amp auto: bf16; in all trainings" in capsys.readouterr().out
    assert steps.precision(fresh=True) in ("bf16", "none")  # measured anew
    assert (tmp_path / steps.PRECISION).read_text() != kept


def test_an_exported_file_adds_its_line_to_the_table(steps, data, tmp_path):
    """The figures are those that test.py gives of the network in PyTorch, up to the float file's rounding."""
    from basicsr.archs import build_network
    from basicsr.data import build_eval_dataset
    from basicsr.export.base import load_student
    from basicsr.export.exporting import export
    from basicsr.metrics.evaluator import evaluate

    network = build_network({"type": "PlainSR", "num_feat": 8, "num_conv": 1, "upscale": 2})
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    student = load_student(tmp_path / "net.pth")
    exported = export(student, tmp_path, formats=[], targets=[steps.TARGET], precision=["float32"], name="net")
    text = (OPTIONS / "test/quickstart.yml").read_text().replace("datasets/quickstart/val", str(data / "val"))
    text = re.sub(
        r"^networks:.*?(?=^val:)", "networks: {bicubic: {type: bicubic}}\n", text, flags=re.DOTALL | re.MULTILINE
    )
    (tmp_path / "test.yml").write_text(text.replace("../", f"{OPTIONS}/"))
    (options,) = load_test_options(tmp_path / "test.yml")
    (block,) = options.datasets_of("test").values()
    pytorch = student.pretrained.network
    found = evaluate(pytorch, build_eval_dataset(block), options.val.metrics, torch.device("cpu"), scale=2)
    lines = steps.table_of(exported.files[0], tmp_path / "test.yml").splitlines()
    psnr, ssim = map(float, lines[-1].split("|")[3].split("/"))
    assert lines[-1].startswith("| int8, onnxruntime | quickstart | ")
    assert [psnr, ssim] == pytest.approx([found.means()["psnr"], found.means()["ssim"]], abs=0.006)


def test_without_the_packages_the_last_step_says_so_in_a_line(steps, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    steps.ship(tmp_path / "net_g_latest.pth", fresh=False, lock=-1)
    out = capsys.readouterr().out
    assert out == "left out: onnxruntime not installed; to have this step: bash install.sh export\n"

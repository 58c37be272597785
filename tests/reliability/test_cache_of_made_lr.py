"""A teacher's cache where LR images are made while training: as with LR images on disk, and refused if stale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.caching import from_cache, make, with_teacher
from support.training import changed, differences

from basicsr.config.load import load_options
from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.engine.inputs import check_cache_content
from basicsr.train import train_pipeline
from basicsr.utils.errors import DataError, OptionsError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/data/generate_lr.py"
JPEG = [{"type": "MatlabBicubic"}, {"type": "Jpeg", "quality": 40}]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Files of several formats and depths, no side a multiple of 2; and below `files` what generate_lr.py makes."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "HR/2024").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (height, width) in (("a.png", (43, 57)), ("b.ppm", (41, 49)), ("2024/c.jpg", (51, 47))):
        assert cv2.imwrite(str(folder / "HR" / name), rng.integers(0, 256, (height, width, 3), np.uint8))
    assert cv2.imwrite(str(folder / "HR/deep.png"), rng.integers(0, 65536, (45, 45, 3), np.uint16))
    files = folder / "files"
    given = ["--input", folder / "HR", "--output", files / "LR", "--hr-output", files / "HR", "--scales", "2"]
    subprocess.run([sys.executable, SCRIPT, *map(str, given), "--workers", "1"], check=True)
    return folder


@pytest.fixture
def made(mcadkd, photographs, tmp_path) -> dict[str, Any]:
    """Options of MCAD-KD on HR images alone."""
    options = with_teacher(mcadkd, tmp_path)
    train = options["datasets"]["train"]
    del train["dataroot_lq"], train["filename_tmpl"]
    train["dataroot_gt"] = str(photographs / "HR")
    return changed(options, train__total_iter=3, val__val_freq=3)


def dataset_of(options: dict[str, Any], **changes: Any) -> Any:
    loaded = load_options(changed(options, **changes), training=True)
    train = loaded.datasets["train"]
    return build_dataset({"type": train.type, **train.arguments, "phase": "train", "scale": loaded.scale})


def test_outputs_patches_and_training_are_those_with_lr_images_on_disk(made, photographs, tmp_path):
    disk = changed(made, datasets__train__dataroot_gt=str(photographs / "files/HR"))
    disk["datasets"]["train"] |= {"dataroot_lq": str(photographs / "files/LR/X2"), "filename_tmpl": "{}x2"}
    ours, theirs = (
        from_cache(given, make(given, tmp_path / name).folder) for given, name in ((made, "a"), (disk, "b"))
    )
    outputs = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.ppm")) for name in "ab"]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4
    for name in outputs[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for changes in ({}, {"datasets__train__gt_size": 60, "datasets__train__extend_small": True}):
        sets = [dataset_of(given, **changes) for given in (ours, theirs)]
        for seed in range(24):
            first, second = (load_sample(one, SampleKey(seed % 4, seed), pixels=True) for one in sets)
            assert [torch.equal(first[role], second[role]) for role in ("lq", "gt", "sr_teacher")] == [True] * 3
    runs = [train_pipeline(given, root=tmp_path / f"run {number}") for number, given in enumerate((ours, theirs))]
    weights = [torch.load(run.folder / "models/net_g_3.pth", weights_only=True)["params"] for run in runs]
    assert differences(*weights) == []


def test_another_degradation_or_another_hr_image_is_refused(made, photographs, tmp_path):
    cache = make(made).folder
    assert cache.name.startswith("HR_MatlabBicubic_EDSR_x2_") and make(made).new == 0
    jpeg = changed(made, datasets__train__degradation=JPEG)
    files = changed(made, datasets__train__dataroot_gt=str(photographs / "files/HR"))
    files["datasets"]["train"] |= {"dataroot_lq": str(photographs / "files/LR/X2"), "filename_tmpl": "{}x2"}

    def refused(given: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message) as making:
            make(given, cache)
        with pytest.raises(DataError, match=message) as training:
            check_cache_content(str(cache), dataset_of(from_cache(given, cache)))
        assert "\n" not in str(making.value) + str(training.value)

    by_bicubic = r'its LR images are made of HR images by \[\{"type": "MatlabBicubic"\}\], the dataset\'s '
    refused(jpeg, by_bicubic + r'made of HR images by \[.*"codec": "libjpeg", "quality": 40')
    refused(files, by_bicubic + "files")
    explicit = changed(made, datasets__train__degradation={"type": "MatlabBicubic"})  # is the default
    check_cache_content(str(cache), dataset_of(from_cache(explicit, cache)))
    copy = tmp_path / "copy/HR"
    copy.mkdir(parents=True)
    for path in (photographs / "HR").rglob("*.*"):
        (copy / path.relative_to(photographs / "HR")).parent.mkdir(exist_ok=True)
        (copy / path.relative_to(photographs / "HR")).write_bytes(path.read_bytes())
    moved = changed(made, datasets__train__dataroot_gt=str(copy))
    check_cache_content(str(cache), dataset_of(from_cache(moved, cache)))  # by content, wherever it lies
    cv2.imwrite(str(copy / "a.png"), 255 - cv2.imread(str(copy / "a.png")))
    refused(moved, "the HR image a is another than it was then")


def test_caches_of_files_are_read_without_a_word_of_degradations(mcadkd, tmp_path):
    options = with_teacher(mcadkd, tmp_path)
    cache = make(options, tmp_path / "cache").folder
    manifest = json.loads((cache / "cache.json").read_text())
    assert manifest.pop("degradation") is None
    (cache / "cache.json").write_text(json.dumps(manifest))  # as before degradations were recorded
    check_cache_content(str(cache), dataset_of(from_cache(options, cache)))
    assert make(options, cache).new == 0


@pytest.mark.parametrize(
    ("degradation", "names"),
    [
        ({"type": "RealESRGAN"}, "RealESRGAN draws"),
        ([{"type": "MatlabBicubic"}, {"type": "Jpeg", "quality": [30, 90]}], "Jpeg draws"),
        (
            [{"type": "Blur", "sigma": [1, 1]}, {"type": "MatlabBicubic"}, {"type": "GaussianNoise", "sigma": 5}],
            "Blur and GaussianNoise draw",
        ),
    ],
)
def test_random_degradations_are_refused_in_a_line(made, tmp_path, degradation, names):
    options = changed(made, datasets__train__degradation=degradation)
    with pytest.raises(OptionsError, match=f"^datasets: train: .* one output for each image, and {names} another LR"):
        make(options, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    with pytest.raises(OptionsError, match=rf"teacher_cache: has one output .*, and {names} .*; remove one of the two"):
        load_options(from_cache(options, tmp_path / "cache"), training=True)


def test_a_fixed_jpeg_is_of_whole_images(made, tmp_path):
    options = changed(made, datasets__train__degradation=JPEG)
    dataset = dataset_of(from_cache(options, make(options, tmp_path / "cache").folder), datasets__train__use_rot=False)
    gt = cv2.imread(dataset.paths[1]["gt_path"])
    whole = torch.from_numpy(dataset.make_lq(gt)[..., ::-1].transpose(2, 0, 1).copy())
    patch = load_sample(dataset, SampleKey(1, 5), pixels=True)["lq"]
    places = [
        (top, left)
        for top in range(whole.shape[1] - 15)
        for left in range(whole.shape[2] - 15)
        if any(torch.equal(whole[:, top : top + 16, left : left + 16], one) for one in (patch, patch.flip(2)))
    ]
    assert len(places) == 1

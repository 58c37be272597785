"""LR images that PairedImageDataset makes of HR images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.transforms import mod_crop
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.matlab_functions import imresize, imresize_integer, shrink_window


def photograph(height: int, width: int, seed: int, dtype: type = np.uint8) -> np.ndarray:
    """Noise of few levels, as flat places and halves to be rounded come often with them."""
    limit = np.iinfo(dtype).max
    return (np.random.default_rng(seed).integers(0, 7, (height, width, 3)) * (limit // 6)).astype(dtype)


def both(folder: Path, scale: int, ending: str = "png", dtype: type = np.uint8, **options):
    """A dataset that makes LR, and one that reads LR made by imresize of whole images, of the same HR images."""
    for name, size in (("a", (43, 58)), ("b", (37, 41))):
        img = mod_crop(photograph(*size, seed=ord(name), dtype=dtype), 1)
        for part, pixels in (
            ("HR", img),
            ("HR_cut", mod_crop(img, scale)),
            ("LR", imresize_integer(mod_crop(img, scale), 1 / scale)),
        ):
            (folder / part).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / part / f"{name}.{ending}"), pixels)
    block = {"type": "PairedImageDataset", "scale": scale, "phase": "train", "gt_size": 4 * scale, **options}
    made = build_dataset({**block, "dataroot_gt": str(folder / "HR")})
    cut = build_dataset({**block, "dataroot_gt": str(folder / "HR_cut"), "dataroot_lq": str(folder / "LR")})
    return made, cut


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("ending, dtype", [("png", np.uint8), ("ppm", np.uint8), ("png", np.uint16)])
def test_patches_are_those_of_whole_lr_images_to_the_bit(tmp_path, scale, ending, dtype):
    made, read = both(tmp_path, scale, ending, dtype)
    for seed in range(40):  # some of them at every edge
        ours, theirs = (load_sample(dataset, SampleKey(seed % 2, seed), pixels=True) for dataset in (made, read))
        assert ours["lq"].dtype == theirs["lq"].dtype
        assert torch.equal(ours["lq"], theirs["lq"])
        assert torch.equal(ours["gt"], theirs["gt"])


def test_whole_images_are_those_that_the_script_makes(tmp_path):
    for made, read in zip(*both(tmp_path, 4, phase="val"), strict=True):
        assert torch.equal(made["lq"], read["lq"])
        assert torch.equal(made["gt"], read["gt"])
        assert Path(made["lq_path"]).name == Path(read["lq_path"]).name


def test_a_patch_as_large_as_the_image_and_larger(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), photograph(20, 26, 0))
    block = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path), "scale": 2, "phase": "train", "gt_size": 32}
    with pytest.raises(DataError, match=r"a\.png is 20x26 .* smaller than patches of 32; lower gt_size, or set extend"):
        build_dataset(block)[0]
    sample = build_dataset({**block, "extend_small": True, "use_hflip": False, "use_rot": False})[0]
    whole = np.pad(cv2.imread(str(tmp_path / "a.png")), ((0, 12), (0, 6), (0, 0)), "symmetric")
    lr = imresize_integer(np.pad(whole, ((8, 8), (8, 8), (0, 0)), "symmetric"), 0.5)[4:-4, 4:-4]
    assert np.array_equal(sample["gt"].numpy() * 255, whole[..., ::-1].transpose(2, 0, 1))
    inside = np.s_[:, :8, :11]  # where mirroring twice is mirroring once
    assert np.array_equal((sample["lq"].numpy() * 255)[inside], lr[..., ::-1].transpose(2, 0, 1)[inside])


def test_an_image_without_an_lr_pixel_is_refused_in_one_line(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), photograph(3, 26, 0))
    block = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path), "scale": 4}
    for options in ({"phase": "val"}, {"phase": "train", "gt_size": 16, "extend_small": True}):
        with pytest.raises(DataError, match=r"a\.png is smaller than one LR pixel: 0x24 .* remain; remove it"):
            build_dataset({**block, **options})[0]


def test_gray_is_made_gray_before(tmp_path):
    made, _ = both(tmp_path, 2, phase="val", color="gray")
    gray = cv2.cvtColor(mod_crop(cv2.imread(str(tmp_path / "HR" / "a.png")), 2), cv2.COLOR_BGR2GRAY)
    assert np.array_equal(made[0]["lq"].numpy()[0] * 255, imresize_integer(gray, 0.5))


def test_an_lmdb_of_hr_images_suffices(tmp_path):
    made, _ = both(tmp_path, 2)
    with LmdbMaker(tmp_path / "HR.lmdb") as maker:
        for name in "ab":
            content = (tmp_path / "HR" / f"{name}.png").read_bytes()
            maker.put(content, name, cv2.imread(str(tmp_path / "HR" / f"{name}.png")).shape)
    block = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "HR.lmdb"), "io_backend": {"type": "lmdb"}}
    packed = build_dataset({**block, "scale": 2, "phase": "train", "gt_size": 8})
    for seed in range(4):
        ours, theirs = (load_sample(dataset, SampleKey(seed % 2, seed)) for dataset in (packed, made))
        assert torch.equal(ours["lq"], theirs["lq"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scale": 1}, "dataroot_lq: is required at scale 1"),
        ({"scale": 1, "degradation": {"type": "MatlabBicubic"}}, "degradation: would change nothing at scale 1"),
        ({"degradation": []}, "degradation: must have a step"),
        (
            {"degradation": [{"type": "MatlabBicubic"}] * 2},
            "shrinks more than once, by MatlabBicubic and MatlabBicubic",
        ),
        ({"dataroot_lq": "LR", "degradation": {"type": "MatlabBicubic"}}, "and dataroot_lq has them; remove one"),
        (
            {"teacher_cache": "cache", "degradation": {"type": "RandomBicubic", "factors": [2, 4]}},
            "teacher_cache: has one output for each image, and RandomBicubic draws another LR image of it each time;",
        ),
        ({"degradation": {"type": "Bicubik"}}, r"no degradation is called 'Bicubik'.*MatlabBicubic"),
    ],
)
def test_contradicting_options_are_one_line(tmp_path, options, message):
    block = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path), "scale": 2, "phase": "train", "gt_size": 8}
    with pytest.raises(OptionsError, match=message):
        build_dataset({**block, **options})


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_windows_of_float_images_agree_with_the_whole(factor):
    whole = np.random.default_rng(0).random((15 * factor, 12 * factor, 3), np.float32)
    margin = 2 * factor
    expected = imresize(whole.astype(np.float64), 1 / factor)[3:9, 2:7]
    window = whole[3 * factor - margin : 9 * factor + margin, 2 * factor - margin : 7 * factor + margin]
    shrunk = shrink_window(window, factor, (3 * factor - margin, 2 * factor - margin))
    np.testing.assert_allclose(shrunk, expected, atol=1e-6)

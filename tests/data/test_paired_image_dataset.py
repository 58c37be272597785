from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.data import build_dataset
from basicsr.files.images import encode_png
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.color_util import bgr2ycbcr
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.randomness import generator


def write(path: Path, height: int, width: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    img = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3)).astype(dtype)
    assert cv2.imwrite(str(path), img)
    return img


@pytest.fixture
def options(tmp_path):
    """Options for one pair: HR 24x32, whose pixel (2i, 2j) is LR pixel (i, j)."""
    gt = write(tmp_path / "HR" / "a.png", 24, 32)
    (tmp_path / "LR").mkdir()
    assert cv2.imwrite(str(tmp_path / "LR" / "ax2.png"), gt[::2, ::2])
    return {
        "type": "PairedImageDataset",
        "dataroot_gt": str(tmp_path / "HR"),
        "dataroot_lq": str(tmp_path / "LR"),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
        "scale": 2,
        "phase": "val",
    }


def to_rgb(img: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((img[..., ::-1].astype(np.float32) / np.float32(255)).transpose(2, 0, 1).copy())


def test_testing_gives_the_whole_pair_as_rgb_in_0_to_1(options):
    item = build_dataset(options)[0]
    gt = cv2.imread(item["gt_path"])
    assert set(item) == {"lq", "gt", "lq_path", "gt_path"}
    assert torch.equal(item["gt"], to_rgb(gt))
    assert torch.equal(item["lq"], to_rgb(gt[::2, ::2]))
    assert item["lq_path"].endswith("LR/ax2.png")


def test_training_patches_show_the_same_place_and_depend_on_the_generator_alone(options):
    dataset = build_dataset({**options, "phase": "train", "gt_size": 12})
    seen = set()
    for seed in range(30):
        item = dataset.load(0, generator(seed, "sample"))
        assert item["gt"].shape == (3, 12, 12)
        assert item["lq"].shape == (3, 6, 6)
        # Flips put LR pixel (0, 0) at either end of its block of HR pixels.
        corners = [item["gt"][:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        assert sum(torch.equal(item["lq"], corner) for corner in corners) == 1
        again = dataset.load(0, generator(seed, "sample"))
        assert torch.equal(again["gt"], item["gt"])
        seen.add(item["lq"].numpy().tobytes())
    assert len(seen) > 25


def test_training_without_augmentation_only_crops(options):
    plain = {**options, "phase": "train", "gt_size": 24, "use_hflip": False, "use_rot": False}
    item = build_dataset(plain)[0]
    gt = cv2.imread(item["gt_path"])
    places = [left for left in range(0, 9, 2) if torch.equal(item["gt"], to_rgb(gt[:, left : left + 24]))]
    assert len(places) == 1


def test_indexing_is_reproducible_and_leaves_global_generators_alone(options):
    dataset = build_dataset({**options, "phase": "train", "gt_size": 12})
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert torch.equal(dataset[0]["gt"], dataset[0]["gt"])
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])


def test_lmdb_gives_the_same_samples_as_files(options, tmp_path):
    for folder, name in (("HR", "a"), ("LR", "ax2")):
        img = cv2.imread(str(tmp_path / folder / f"{name}.png"))
        with LmdbMaker(tmp_path / f"{folder}.lmdb") as maker:
            maker.put(encode_png(img, 1), "a", img.shape)
    train = {**options, "phase": "train", "gt_size": 12}
    packed = {
        **train,
        "dataroot_gt": str(tmp_path / "HR.lmdb"),
        "dataroot_lq": str(tmp_path / "LR.lmdb"),
        "io_backend": {"type": "lmdb"},
    }
    from_files, from_lmdb = build_dataset(train)[0], build_dataset(packed)[0]
    assert torch.equal(from_files["gt"], from_lmdb["gt"])
    assert torch.equal(from_files["lq"], from_lmdb["lq"])
    assert from_lmdb["gt_path"] == "a"


def test_16_bit_files_keep_their_depth(options, tmp_path):
    gt = write(tmp_path / "HR" / "a.png", 24, 32, dtype=np.uint16)
    with pytest.raises(DataError, match=r"HR .*a\.png has 16 bits to a channel, LR .*ax2\.png has 8"):
        build_dataset(options)[0]
    write(tmp_path / "LR" / "ax2.png", 12, 16, dtype=np.uint16)
    item = build_dataset(options)[0]
    assert torch.equal(item["gt"][0, 0], torch.from_numpy(gt[0, :, 2].astype(np.float32) / np.float32(65535)))


def test_y_channel_and_normalisation(options):
    item = build_dataset({**options, "color": "y", "mean": [0.25], "std": [0.5]})[0]
    luma = bgr2ycbcr(cv2.imread(item["lq_path"]).astype(np.float32) / np.float32(255), y_only=True)
    torch.testing.assert_close(item["lq"], (torch.from_numpy(luma)[None] - 0.25) / 0.5)
    with pytest.raises(OptionsError, match="mean must have 3 entries"):
        build_dataset({**options, "mean": [0.5]})


def test_in_testing_the_hr_image_is_cut_to_scale_times_lr(options, tmp_path):
    gt = write(tmp_path / "HR" / "a.png", 25, 33)
    item = build_dataset(options)[0]
    assert torch.equal(item["gt"], to_rgb(gt[:24, :32]))


@pytest.mark.parametrize(("more", "fits"), [(11, True), (12, False)])
def test_hr_larger_than_cutting_to_multiples_of_12_explains_is_refused_in_testing(options, tmp_path, more, fits):
    write(tmp_path / "HR" / "a.png", 24 + more, 32)
    if fits:
        assert build_dataset(options)[0]["gt"].shape == (3, 24, 32)
        return
    with pytest.raises(DataError, match=r"a\.png of 36x32 is much larger than 2 times LR .*ax2\.png of 12x16; check"):
        build_dataset(options)[0]


def test_hr_smaller_than_scale_times_lr_is_refused_in_testing(options, tmp_path):
    write(tmp_path / "HR" / "a.png", 24, 31)
    with pytest.raises(DataError, match=r"HR .*a\.png of 24x31 is smaller than 2 times LR .*ax2\.png of 12x16"):
        build_dataset(options)[0]


@pytest.mark.parametrize(
    "height, width, gt_size, message",
    [
        (25, 32, 12, r"HR .*a\.png is 25x32, LR .*ax2\.png is 12x16 .* must be 24x32"),
        (24, 32, 26, r"ax2\.png is 12x16 .* smaller than patches of 26 \(LR 13\)"),
    ],
)
def test_training_pairs_that_do_not_fit_are_refused_in_one_line(options, tmp_path, height, width, gt_size, message):
    write(tmp_path / "HR" / "a.png", height, width)
    with pytest.raises(DataError, match=message) as caught:
        build_dataset({**options, "phase": "train", "gt_size": gt_size})[0]
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(options, tmp_path):
    path = tmp_path / "LR" / "ax2.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"ax2\.png: the file is truncated"):
        build_dataset(options)[0]


@pytest.mark.parametrize("gt_size", [None, 13, 1])
def test_a_patch_size_is_needed_in_training_and_a_multiple_of_the_scale(options, gt_size):
    with pytest.raises(OptionsError, match=f"multiple of the scale 2 in training, got {gt_size}"):
        build_dataset({**options, "phase": "train", "gt_size": gt_size})


def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(OptionsError, match=r"LR must end in \.lmdb"):
        build_dataset({**options, "io_backend": {"type": "lmdb"}})
    with pytest.raises(
        OptionsError, match=r"io_backend.type: is required, as a storage needs a type; there are: bands, disk, lmdb"
    ):
        build_dataset({**options, "io_backend": {}})
    with pytest.raises(OptionsError, match=r"gt_sise.*did you mean 'gt_size'"):
        build_dataset({**options, "gt_sise": 4})
    with pytest.raises(OptionsError, match="scale: is required"):
        build_dataset({key: value for key, value in options.items() if key != "scale"})


def test_single_images_come_alone_from_a_folder_or_a_list(options, tmp_path):
    write(tmp_path / "LR" / "b.png", 4, 5)
    single = {
        "type": "SingleImageDataset",
        "dataroot_lq": options["dataroot_lq"],
        "phase": "test",
        "scale": 2,
    }
    dataset = build_dataset(single)
    assert [Path(dataset[index]["lq_path"]).name for index in range(len(dataset))] == ["ax2.png", "b.png"]
    assert set(dataset[0]) == {"lq", "lq_path"}
    assert torch.equal(dataset[1]["lq"], to_rgb(cv2.imread(str(tmp_path / "LR" / "b.png"))))
    (tmp_path / "meta.txt").write_text("b.png\n")
    assert len(build_dataset({**single, "meta_info_file": str(tmp_path / "meta.txt")})) == 1
    luma = build_dataset({**single, "color": "y"})[1]["lq"]
    expected = bgr2ycbcr(cv2.imread(str(tmp_path / "LR" / "b.png")).astype(np.float32) / np.float32(255), True)
    torch.testing.assert_close(luma[0], torch.from_numpy(expected))

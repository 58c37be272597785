"""Gray networks see gray values as they are stored, in training and evaluation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.networks import nearest_edsr, save_checkpoint

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_eval_dataset
from basicsr.data.base import SampleKey, TensorConversion, load_sample
from basicsr.data.batch import collate
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.metrics.evaluator import evaluate
from basicsr.test import test_pipeline as run_test
from basicsr.utils.errors import OptionsError


def stored(folder: Path, image: np.ndarray, ending: str = "png") -> torch.Tensor:
    """What a dataset for gray networks gives of an image in a file."""
    folder.mkdir()
    assert cv2.imwrite(str(folder / f"a.{ending}"), image)
    return SingleImageDataset(dataroot_lq=str(folder), color="gray")[0]["lq"]


@pytest.mark.parametrize(("dtype", "count"), [(np.uint8, 2**8), (np.uint16, 2**16)])
def test_every_stored_level_is_kept(tmp_path, dtype, count):
    levels = np.arange(count, dtype=dtype).reshape(16, -1)
    expected = torch.from_numpy(levels.astype(np.float32) / np.float32(count - 1))[None]
    assert torch.equal(stored(tmp_path / "gray", levels), expected)
    assert torch.equal(stored(tmp_path / "in three channels", cv2.merge([levels] * 3)), expected)
    assert torch.equal(stored(tmp_path / "tiff", levels, "tif"), expected)


def test_a_gray_jpeg_has_the_values_that_its_decoder_gives(tmp_path):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8), (0, 0), 2)
    found = stored(tmp_path / "jpeg", image, "jpg")
    decoded = cv2.imread(str(tmp_path / "jpeg/a.jpg"), cv2.IMREAD_UNCHANGED)
    assert decoded.ndim == 2 and torch.equal(
        found, torch.from_numpy(decoded.astype(np.float32) / np.float32(255))[None]
    )


def test_colours_become_their_luma_of_full_range(tmp_path):
    bgr = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    exact = bgr.astype(np.float64) @ [0.114, 0.587, 0.299]
    assert np.abs(stored(tmp_path / "colour", bgr)[0].numpy() * 255.0 - exact).max() < 0.51
    luma = TensorConversion("y", None, None)(np.full((1, 1, 3), 255, np.uint8))
    assert luma.item() == pytest.approx(235 / 255)  # which BasicSR's color: y gives


def test_batches_hold_gray_as_bytes_until_they_are_used(image_pairs):
    gt, lq = image_pairs(count=2)
    dataset = PairedImageDataset(
        dataroot_gt=str(gt), dataroot_lq=str(lq), scale=2, gt_size=16, filename_tmpl="{}x2", color="gray"
    )
    keys = [SampleKey(index, seed=index) for index in range(2)]
    batch = collate([load_sample(dataset, key, pixels=True) for key in keys], [0, 1])
    assert batch.gt is not None and batch.gt.dtype == torch.uint8 and batch.gt.shape == (2, 1, 16, 16)
    expected = torch.stack([load_sample(dataset, key)["gt"] for key in keys])
    assert torch.equal(batch.to("cpu").gt, expected)


def test_mean_and_std_have_one_entry():
    image = np.full((2, 2, 3), 51, np.uint8)
    assert TensorConversion("gray", [0.1], [0.5])(image).flatten().tolist() == pytest.approx([0.2] * 4)
    with pytest.raises(OptionsError, match="mean must have 1 entries, one for each channel"):
        TensorConversion("gray", [0.1, 0.1, 0.1], None)


@pytest.mark.parametrize("color", [None, "gray"])
def test_figures_are_of_images_before_mean_and_std(image_pairs, color):
    """A network that doubles pixels gives the same figures of normalised images, whose outputs are brought back."""
    gt, lq = image_pairs(count=2)
    channels = 3 if color is None else 1
    network, _ = nearest_edsr(channels=channels)
    network.mean.zero_()
    found = []
    for normalised in ({}, {"mean": [0.4] * channels, "std": [0.25] * channels}):
        data = {"dataroot_gt": str(gt), "dataroot_lq": str(lq), "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}}
        named = {"type": "PairedImageDataset", "name": "any", "phase": "test", "scale": 2, "color": color}
        dataset = build_eval_dataset(DatasetOptions(**named, **data, **normalised))
        metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
        evaluation = evaluate(network, dataset, metrics, torch.device("cpu"), scale=2)
        assert evaluation is not None
        found.append(evaluation.values)
    assert found[0] == pytest.approx(found[1], abs=1e-6) and 10 < found[0].min() < 60


@pytest.fixture
def mixed_set(tmp_path) -> tuple[Path, dict[str, float]]:
    """Gray stored as gray, as RGB, and colour; PSNR of each against its LR image with every pixel doubled."""
    generator, expected = np.random.default_rng(0), {}
    for kind in ("HR", "LR"):
        (tmp_path / kind).mkdir()
    for name in ("gray", "equal", "colour"):
        image = generator.integers(0, 256, (16, 16) if name != "colour" else (16, 16, 3), np.uint8)
        image = cv2.merge([image] * 3) if name == "equal" else image
        cv2.imwrite(str(tmp_path / "HR" / f"{name}.png"), image)
        cv2.imwrite(str(tmp_path / "LR" / f"{name}.png"), image[::2, ::2])
        gray = cv2.imread(str(tmp_path / "HR" / f"{name}.png"), cv2.IMREAD_GRAYSCALE).astype(np.float64)
        error = gray - gray[::2, ::2].repeat(2, 0).repeat(2, 1)
        expected[name] = 10 * np.log10(255**2 / np.square(error).mean())
    return tmp_path, expected


def test_a_gray_network_is_measured_on_gray_values_and_saves_gray(mixed_set):
    root, expected = mixed_set
    network, block = nearest_edsr(channels=1)
    file = save_checkpoint(root / "net.pth", network, block, 2)
    metrics = {
        "psnr": {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": True},
        "psnr_pt": {"type": "calculate_psnr_pt", "crop_border": 0},
    }
    data = {"type": "PairedImageDataset", "dataroot_gt": str(root / "HR"), "dataroot_lq": str(root / "LR")}
    options = {
        "name": "gray",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test": {**data, "name": "mixed", "color": "gray", "io_backend": {"type": "disk"}}},
        "networks": {"nearest": {"path": str(file)}},
        "val": {"metrics": metrics, "save_img": True},
        "report": {"html": False, "plots": False, "speed": False},
    }
    results = run_test(options, root=root)
    (row,) = results.scales[0].rows
    figures = dict(zip(row.evaluations["mixed"].images, row.evaluations["mixed"].values.tolist(), strict=True))
    for name, value in expected.items():
        assert figures[name] == pytest.approx([value] * 2, abs=0.02 if name == "colour" else 1e-4)
    saved = cv2.imread(str(next((root / "results").rglob("gray_gray.png"))), cv2.IMREAD_UNCHANGED)
    hr = cv2.imread(str(root / "HR/gray.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(saved, hr[::2, ::2].repeat(2, 0).repeat(2, 1))
    assert results.input_shape == (1, 256, 256) and row.multiply_adds
    log = next((root / "results").rglob("*.log")).read_text()
    assert "datasets.test (mixed) has one channel: test_y_channel of psnr has no effect" in log

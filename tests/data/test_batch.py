"""Batches as workers hand them over: uint8, in memory that is used again, against float32 images loaded one by one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from basicsr.data import batch as batches_module
from basicsr.data.base import load_sample
from basicsr.data.batch import Batch, Slots, collate, in_unit_range
from basicsr.data.checks.checking import check_images
from basicsr.data.loading import TrainLoader
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.sampling import KeySampler
from basicsr.files.images import encode_ppm
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError

COUNT, SCALE, SIDE = 9, 2, 16


def image(index: int, side: int, dtype: type = np.uint8) -> np.ndarray:
    generator = np.random.default_rng([index, side])
    return generator.integers(0, np.iinfo(dtype).max + 1, (side + index, side + 5, 3), dtype=dtype)


def dtype_of(index: int, deep: str) -> type:
    return np.uint16 if deep == "all" or (deep == "some" and index % 2) else np.uint8


def folders(root: Path, deep: str = "none") -> dict[str, Any]:
    """PNG files; all, some or none of the pairs of 16 bits."""
    for name, factor in (("HR", SCALE), ("LR", 1)):
        (root / name).mkdir()
        for index in range(COUNT):
            img = image(index, 12, dtype_of(index, deep)).repeat(factor, 0).repeat(factor, 1)
            assert cv2.imwrite(str(root / name / f"{index}.png"), img)
    return {"dataroot_gt": str(root / "HR"), "dataroot_lq": str(root / "LR"), "scale": SCALE, "gt_size": SIDE}


def databases(root: Path, short: int | None = None) -> dict[str, Any]:
    """The same images uncompressed in LMDB; of one pair the LR value is a byte short."""
    for name, factor in (("HR", SCALE), ("LR", 1)):
        with LmdbMaker(root / f"{name}.lmdb", compress_level=0, ending=".ppm") as maker:
            for index in range(COUNT):
                img = image(index, 12).repeat(factor, 0).repeat(factor, 1)
                content = encode_ppm(img)
                maker.put(content[: -1 if (name, index) == ("LR", short) else None], str(index), img.shape)
    roots = {"dataroot_gt": str(root / "HR.lmdb"), "dataroot_lq": str(root / "LR.lmdb")}
    return {**roots, "io_backend": {"type": "lmdb"}, "scale": SCALE, "gt_size": SIDE}


def sampler(iterations: int) -> KeySampler:
    return KeySampler(num_samples=COUNT, batch_size=4, seed=7, total_iterations=iterations)


def batches(dataset: Any, workers: int, iterations: int = 3, **options: Any) -> list[Batch]:
    return [batch for (batch,) in TrainLoader(dataset, sampler(iterations), num_workers=workers, **options)]


def one_by_one(dataset: Any, iterations: int = 3) -> list[dict[str, torch.Tensor]]:
    """Float32 images as `load_sample` gives them to everybody, stacked."""
    samples = [[load_sample(dataset, key) for key in keys] for keys in sampler(iterations)]
    return [{name: torch.stack([sample[name] for sample in batch]) for name in ("lq", "gt")} for batch in samples]


def assert_equal(found: list[Batch], expected: list[dict[str, torch.Tensor]], **to: Any) -> None:
    for batch, images in zip([batch.to("cpu", **to) for batch in found], expected, strict=True):
        for name, wanted in images.items():
            tensor = getattr(batch, name)
            assert tensor.dtype == wanted.dtype == torch.float32 and torch.equal(tensor, wanted)
            layout = torch.channels_last if to.get("channels_last") else torch.contiguous_format
            assert tensor.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("full, dtype", [(255, np.uint8), (65535, np.uint16)])
def test_every_value_becomes_the_float_that_numpys_division_gives(full, dtype):
    values = np.arange(full + 1).astype(dtype)
    expected = values.astype(np.float32) / np.float32(full)
    exact = np.arange(full + 1) / full
    assert np.abs(expected - exact).max() < 2**-24
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.from_numpy(values.reshape(1, 1, 16, -1))
        assert torch.equal(in_unit_range(images, layout).flatten(), torch.from_numpy(expected))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_to_the_bit_those_of_float32(workers, channels_last, tmp_path):
    dataset = PairedImageDataset(**folders(tmp_path))
    found = batches(dataset, workers)
    assert all(batch.lq.dtype == batch.gt.dtype == torch.uint8 for batch in found)
    assert_equal(found, one_by_one(dataset), channels_last=channels_last)


@pytest.mark.parametrize(
    "deep, options",
    [
        ("all", {}),
        ("some", {}),
        ("none", {"color": "y"}),
        ("none", {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}),
        ("none", {"use_rot": False, "use_vflip": True}),
        ("none", {"gt_size": 40, "extend_small": True}),
    ],
    ids=["16 bits", "some of 16 bits", "luma", "normalised", "flipped", "extended"],
)
def test_other_images_are_to_the_bit_what_they_were(deep, options, tmp_path):
    dataset = PairedImageDataset(**{**folders(tmp_path, deep), **options})
    found, expected = batches(dataset, 1), one_by_one(dataset)
    assert_equal(found, expected)
    assert_equal(found, expected, channels_last=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_uncompressed_databases_give_the_samples_of_png_files(workers, tmp_path):
    (tmp_path / "files").mkdir()
    png = PairedImageDataset(**folders(tmp_path / "files"))
    ppm = PairedImageDataset(**databases(tmp_path))
    assert check_images(ppm, Options()) == []
    assert_equal(batches(ppm, workers), one_by_one(png))


class Options:
    """What the check before training asks for."""

    name, check_images = "tiny", "headers"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_short_value_is_found_before_training_refused_in_it_and_skipped_on_demand(workers, tmp_path):
    dataset = PairedImageDataset(**databases(tmp_path, short=3))
    (bad,) = check_images(dataset, Options())
    assert bad.index == 3 and "LR.lmdb (key '3')" in bad.path and "the file is truncated" in bad.reason
    with pytest.raises(DataError, match=r"cannot read image .*LR\.lmdb \(key '3'\): the file is truncated"):
        batches(dataset, workers)
    found = batches(dataset, workers, skip_bad_images=1)
    assert {note.split(": ")[0] for batch in found for _, note in batch.skipped} == {bad.path}
    replaced = [place for batch in found for place in batch.lq_paths].count("4")
    assert replaced == sum(key.index in (3, 4) for keys in sampler(3) for key in keys)


class Brighter(PairedImageDataset):
    """A dataset of a user's own, which counts on images being float32."""

    def load(self, index: int, rng: np.random.Generator, gt_size: int | None = None) -> dict[str, Any]:
        sample = super().load(index, rng, gt_size)
        assert sample["lq"].dtype == torch.float32
        return {**sample, "lq": sample["lq"] * 2}


def test_a_class_that_changes_load_is_asked_for_that(tmp_path):
    arguments = folders(tmp_path)
    plain = one_by_one(PairedImageDataset(**arguments))
    doubled = [{"lq": images["lq"] * 2, "gt": images["gt"]} for images in plain]
    assert_equal(batches(Brighter(**arguments), 0), doubled)


def test_whole_numbers_and_floats_in_one_batch_become_floats():
    samples = [{"lq": torch.full((3, 2, 2), 51, dtype=torch.uint8)}, {"lq": torch.full((3, 2, 2), 0.5)}]
    assert collate(samples, [1, 2]).lq[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.5])


def test_kept_batches_are_never_written_over_and_slots_are_used_again(tmp_path, monkeypatch):
    made: list[Slots] = []
    monkeypatch.setattr(Slots, "made", lambda *counts: made.append(Slots(*counts)) or made[-1])
    dataset = PairedImageDataset(**folders(tmp_path))
    expected = one_by_one(dataset, 40)
    kept = batches(dataset, 1, 40)  # more than there are slots
    assert_equal(kept, expected)
    slots = made.pop()
    assert slots.busy.all()
    last = kept[0].gt[1, :, 3]
    wanted = last.clone()
    del kept
    assert slots.busy.sum() == 1  # a part of one batch is still referred to
    assert torch.equal(last, wanted)
    del last
    assert slots.busy.sum() == 0
    monkeypatch.undo()
    for (batch,), images in zip(TrainLoader(dataset, sampler(40), num_workers=1), expected, strict=True):
        assert_equal([batch], [images])


def test_what_a_forked_process_lets_go_of_stays_in_use(tmp_path):
    slots = Slots(1, 2)
    batch = Batch(torch.ones(1, 3, 2, 2), None, ("a",), ("",), torch.tensor([5]))
    function, arguments = slots.take(0).filled(batch).__reduce__()
    held = [function(*arguments)]
    child = multiprocessing.get_context("fork").Process(target=held.clear)
    child.start()
    child.join()
    assert slots.busy.tolist() == [[1, 0]]
    assert torch.equal(held[0].lq, batch.lq) and held[0].seeds.tolist() == [5]
    held.clear()
    assert slots.busy.tolist() == [[0, 0]]


def test_batches_that_do_not_fit_go_pytorchs_way(tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "_LARGEST_BATCH", 4096)
    dataset = PairedImageDataset(**folders(tmp_path))  # 4 x 3 x (16 x 16 + 8 x 8) bytes fit, of larger patches not
    assert_equal(batches(dataset, 1), one_by_one(dataset))
    larger = PairedImageDataset(**{**folders_of(dataset), "gt_size": 24})
    assert_equal(batches(larger, 1), one_by_one(larger))


def folders_of(dataset: PairedImageDataset) -> dict[str, Any]:
    roots = dataset.stored_images().roots
    return {"dataroot_gt": roots["gt"].path, "dataroot_lq": roots["lq"].path, "scale": SCALE}

"""LR images made on the device of the training, after their batch was handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from basicsr.config.load import load_options
from basicsr.data import build_dataset, build_train_loader
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.batch import Batch, collate
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.errors import OptionsError

BLUR = {"type": "Blur", "sigma": [0.4, 2.0], "kernel_size": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five images, smaller and larger than patches, two of them of 16 bits."""
    folder = tmp_path_factory.mktemp("HR")
    for number, size in enumerate([(75, 59), (43, 66), (20, 90), (61, 61), (48, 40)]):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 11, 3)).astype(np.uint8)
        img = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        img = img.astype(np.uint16) * 257 + 3 if number % 2 else img
        assert cv2.imwrite(str(folder / f"{number}.png"), img)
    return folder


def options_of(mcadkd, folder: Path, device: str, workers: int, steps: tuple[Any, ...] = (), **changes: Any):
    """The training set's options, in which Real-ESRGAN's degradations come after `steps`."""
    train = {
        **{"name": "photographs", "type": "PairedImageDataset", "dataroot_gt": str(folder), "extend_small": True},
        **{"degradation": [*steps, {"type": "RealESRGAN", "device": device}], "gt_size": 24, "use_vflip": True},
        **{"num_worker_per_gpu": workers, "batch_size_per_gpu": 2, **changes},
    }
    return load_options({**mcadkd, "datasets": {"train": train}}, training=True, paths=False).datasets["train"]


def batches(options, on_gpu: bool = False, further=None) -> list[Batch]:
    place = {"rank": 0, "world_size": 1, "start_iteration": 1, "total_iterations": 4}
    loader = build_train_loader(options, further or {}, accumulate=2, on_gpu=on_gpu, seed=3, **place)
    return [batch for of_one in loader for batch in of_one]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": (BLUR,), "use_rot": False},
        {"color": "gray"},
        {"gt_sizes": [16, 32], "mini_batch_sizes": [3, 1], "iters": [2, 7], "gt_size": 32, "batch_size_per_gpu": 3},
    ],
)
def test_batches_are_to_the_bit_those_of_the_workers(mcadkd, folder, changes):
    expected = [batch.to("cpu") for batch in batches(options_of(mcadkd, folder, "cpu", 0, **changes))]
    for workers in (0, 2):
        found = batches(options_of(mcadkd, folder, "training", workers, **changes))
        for raw, other in zip(found, expected, strict=True):
            assert len(raw.unfinished) == len(raw.lq) and raw.lq.shape[-1] == other.gt.shape[-1] + 2 * 72
            for layout in (False, True):
                made = raw.to("cpu", channels_last=layout)
                assert made.numbers is None and made.unfinished == ()
                assert made.lq.dtype == torch.float32
                assert made.lq.is_contiguous(memory_format=torch.channels_last if layout else torch.contiguous_format)
                for name in ("lq", "gt", "seeds"):
                    assert torch.equal(getattr(made, name), getattr(other, name)), (name, workers)
            assert (made.lq_paths, made.gt_paths) == (other.lq_paths, other.gt_paths)


@pytest.mark.parametrize(
    "device, on_gpu, later",
    [("auto", True, True), ("auto", False, False), ("cpu", True, False), ("training", False, True)],
)
def test_where_it_is_done_is_as_chosen(mcadkd, folder, device, on_gpu, later):
    found = batches(options_of(mcadkd, folder, device, 0, pin_memory=False), on_gpu)
    assert all(bool(batch.unfinished) is later for batch in found)


def test_what_changes_lr_images_afterwards_keeps_them_in_the_workers(mcadkd, folder):
    for changes in ({"color": "y"}, {"mean": [0.4, 0.4, 0.4]}):
        options = options_of(mcadkd, folder, "auto", 0, pin_memory=False, **changes)
        assert not any(batch.unfinished for batch in batches(options, on_gpu=True))
        with pytest.raises(OptionsError, match="so color: y, mean and std cannot change them; take device: cpu"):
            batches(options_of(mcadkd, folder, "training", 0, **changes))


class _WithLoad(PairedImageDataset):
    def load(self, *arguments, **options):
        return super().load(*arguments, **options)


def test_a_derived_class_that_may_change_lr_images_gets_them(folder):
    block = {"dataroot_gt": str(folder), "scale": 2, "gt_size": 16, "extend_small": True}
    derived = _WithLoad(**block, degradation={"type": "RealESRGAN"})
    derived.begin_training(on_gpu=True)
    assert load_sample(derived, SampleKey(0, 1), pixels=True)["lq"].shape == (3, 8, 8)
    with pytest.raises(OptionsError, match=r"after _WithLoad\.load, which may change them; take device: cpu"):
        _WithLoad(**block, degradation={"type": "RealESRGAN", "device": "training"}).begin_training(on_gpu=False)


def test_only_the_last_step_can_be_left_for_later(mcadkd, folder):
    steps = [{"type": "RealESRGAN", "device": "training"}, {"type": "EightBits"}]
    with pytest.raises(OptionsError, match=r"has device: training at a step that is not the last; take device: cpu"):
        options_of(mcadkd, folder, "cpu", 0, degradation=steps)
    steps[0]["device"] = "auto"
    options = options_of(mcadkd, folder, "cpu", 0, degradation=steps, pin_memory=False)
    assert not any(batch.unfinished for batch in batches(options, on_gpu=True))


def test_sets_of_both_kinds_can_be_mixed(mcadkd, folder):
    later, workers = (options_of(mcadkd, folder, device, 2) for device in ("training", "cpu"))
    bicubic = options_of(mcadkd, folder, "cpu", 2, degradation={"type": "MatlabBicubic"})
    found, expected = (batches(options, further={"train_b": bicubic}) for options in (later, workers))
    assert {bool(batch.unfinished) for batch in found} == {True, False}
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.to("cpu").lq, theirs.to("cpu").lq)


def test_validation_and_checks_read_whole_samples(folder):
    block = {"type": "PairedImageDataset", "dataroot_gt": str(folder), "scale": 2, "phase": "val"}
    made = [
        build_dataset({**block, "degradation": {"type": "RealESRGAN", "device": name}})[0]["lq"]
        for name in ("cpu", "training")
    ]
    assert made[0].shape == (3, 29, 37) and torch.equal(*made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_nearly_the_same_images_and_repeats_them(folder):
    dataset = PairedImageDataset(
        dataroot_gt=str(folder), scale=2, gt_size=32, extend_small=True, degradation={"type": "RealESRGAN"}
    )
    dataset.begin_training(on_gpu=True)
    samples = [load_sample(dataset, SampleKey(number % 5, number), pixels=True) for number in range(20)]
    batch = collate(samples, range(20))
    on_cpu, on_gpu, again = batch.to("cpu").lq, batch.pin_memory().to("cuda").lq, batch.to("cuda").lq
    assert on_gpu.is_cuda and torch.equal(on_gpu, again)
    levels = (on_gpu.cpu() - on_cpu).abs() * 255
    # Rounding inside may come out otherwise, and JPEG makes a whole step of it.
    assert float((levels < 0.5).float().mean()) > 0.98 and float(levels.mean()) < 0.1

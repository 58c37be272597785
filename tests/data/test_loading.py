from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basicsr.data import build_eval_dataset, build_train_loader, loading
from basicsr.data.batch import Batch, collate
from basicsr.data.loading import PrefetchedBatches
from basicsr.utils.errors import DataError, MachineError, Preempted
from basicsr.utils.randomness import preserved_global_state
from basicsr.utils.registry import Registry


@dataclass(frozen=True)
class Settings:
    """A stand-in for the typed options, with the same fields."""

    arguments: dict[str, Any]
    type: str = "PairedImageDataset"
    name: str | None = "tiny"
    phase: str = "train"
    scale: int | None = 2
    batch_size_per_gpu: int = 4
    num_worker_per_gpu: int = 0
    dataset_enlarge_ratio: int = 1
    prefetch_mode: str | None = None
    num_prefetch_queue: int = 1
    use_shuffle: bool = True
    pin_memory: bool = True
    persistent_workers: bool = True
    gt_sizes: tuple[int, ...] | None = None
    mini_batch_sizes: tuple[int, ...] | None = None
    iters: tuple[int, ...] | None = None
    check_images: str = "headers"
    skip_bad_images: int = 0


@pytest.fixture
def arguments(image_pairs) -> dict[str, Any]:
    gt_root, lq_root = image_pairs(scale=2, count=6, size=24)
    roots = {"dataroot_gt": str(gt_root), "dataroot_lq": str(lq_root)}
    return {**roots, "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}, "gt_size": 16}


def load(settings: Settings, **changes: Any) -> list[tuple[Batch, ...]]:
    place = {"seed": 5, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 5}
    place |= {"accumulate": 1, "on_gpu": False, **changes}
    return list(build_train_loader(settings, **place))


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.lq, other.lq)
        assert torch.equal(batch.gt, other.gt)
        assert torch.equal(batch.seeds, other.seeds)
        assert (batch.lq_paths, batch.gt_paths) == (other.lq_paths, other.gt_paths)


def flat(iterations: list[tuple[Batch, ...]]) -> list[Batch]:
    return [batch for batches in iterations for batch in batches]


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([batch.lq for batch in batches]),
        torch.cat([batch.gt for batch in batches]),
        tuple(path for batch in batches for path in batch.lq_paths),
        tuple(path for batch in batches for path in batch.gt_paths),
        torch.cat([batch.seeds for batch in batches]),
    )


class TestBatches:
    def test_hold_what_the_contract_says(self, arguments):
        (batch,) = load(Settings(arguments), total_iterations=1)[0]
        assert (batch.lq.shape, batch.gt.shape) == ((4, 3, 8, 8), (4, 3, 16, 16))
        assert batch.lq.dtype == batch.gt.dtype == torch.uint8
        assert batch.seeds.dtype == torch.int64 and len(set(batch.seeds.tolist())) == 4
        assert all(Path(path).exists() for path in (*batch.lq_paths, *batch.gt_paths))
        moved = batch.to("cpu", channels_last=True)
        assert moved.lq.is_contiguous(memory_format=torch.channels_last)
        assert moved.lq.dtype == moved.gt.dtype == torch.float32
        assert moved.gt.min() >= 0 and moved.gt.max() <= 1
        assert torch.equal(moved.to("cpu").gt, batch.to("cpu").gt)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_are_the_same_with_any_number_of_workers(self, arguments, workers):
        in_process = flat(load(Settings(arguments)))
        assert_same(flat(load(Settings(arguments, num_worker_per_gpu=workers))), in_process)

    @pytest.mark.parametrize("start", [1, 3])
    def test_are_the_same_after_a_resume_in_the_middle_of_a_pass(self, arguments, start):
        assert_same(flat(load(Settings(arguments), start_iteration=start)), flat(load(Settings(arguments)))[start:])

    def test_of_two_ranks_make_up_those_of_one(self, arguments):
        one = flat(load(Settings(arguments)))
        halves = [flat(load(Settings(arguments, batch_size_per_gpu=2), rank=rank, world_size=2)) for rank in (0, 1)]
        assert_same([joined(list(pair)) for pair in zip(*halves, strict=True)], one)

    def test_are_accumulated_in_order(self, arguments):
        micro = load(Settings(arguments, batch_size_per_gpu=2), accumulate=2)
        assert [len(entry) for entry in micro] == [2] * 5
        assert_same([joined(list(entry)) for entry in micro], flat(load(Settings(arguments))))

    def test_of_another_seed_differ(self, arguments):
        first, second = (flat(load(Settings(arguments), seed=seed, total_iterations=1))[0] for seed in (5, 6))
        assert not torch.equal(first.lq, second.lq)

    def test_come_in_the_datasets_order_without_shuffling(self, arguments):
        batches = flat(load(Settings(arguments, use_shuffle=False), total_iterations=3))
        stems = [Path(path).stem for batch in batches for path in batch.gt_paths]
        assert stems == [f"img{position % 6:03d}" for position in range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing_from_the_global_generators(arguments, workers):
    with preserved_global_state():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = random.random(), np.random.rand(), float(torch.rand(1))
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        load(Settings(arguments, num_worker_per_gpu=workers))
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected


def test_an_epoch_counts_all_ranks_and_passes(arguments):
    place = {"seed": 0, "rank": 0, "start_iteration": 2, "total_iterations": 10, "on_gpu": False}
    settings = Settings(arguments, batch_size_per_gpu=2, dataset_enlarge_ratio=3)
    loader = build_train_loader(settings, world_size=2, accumulate=2, **place)
    assert loader.num_samples == 6
    assert loader.iterations_per_epoch == 3  # 18 / 8, rounded up
    assert len(loader) == 8


class TestErrors:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_damaged_image_reaches_the_user_in_one_line(self, arguments, workers):
        broken = sorted(Path(arguments["dataroot_lq"]).iterdir())[2]
        broken.write_bytes(broken.read_bytes()[:-40])
        with pytest.raises(DataError, match=f"{broken.name}: the file is truncated") as caught:
            load(Settings(arguments, num_worker_per_gpu=workers))
        assert type(caught.value) is DataError
        assert "\n" not in str(caught.value)
        assert multiprocessing.active_children() == []  # although the exception is still held

    def test_images_of_different_sizes_are_refused_by_name(self):
        samples = [{"lq": torch.zeros(3, 4, size), "lq_path": f"{size}.png"} for size in (4, 5)]
        with pytest.raises(DataError, match=r"'lq' 3 x 4 x 4 \(4\.png\) and 3 x 4 x 5 \(5\.png\)"):
            collate(samples, [1, 2])

    def test_samples_without_images_are_refused(self):
        with pytest.raises(DataError, match=r"'lq' of sample a must be a tensor .*, got NoneType"):
            collate([{"gt": torch.zeros(3, 4, 4), "lq_path": "a"}], [1])
        with pytest.raises(DataError, match=r"'gt' of sample b must be a tensor .*, got ndarray"):
            collate([{"lq": torch.zeros(3, 4, 4), "gt": np.zeros((3, 4, 4)), "gt_path": "b"}], [1])

    def test_a_killed_worker_is_told_as_such(self, arguments):
        place = {"seed": 0, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 10**6}
        loader = build_train_loader(Settings(arguments, num_worker_per_gpu=1), accumulate=1, on_gpu=False, **place)
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        multiprocessing.connection.wait([worker.sentinel])
        time.sleep(0.1)  # nothing is raised here, where a step would be computed
        with pytest.raises(MachineError, match="lower num_worker_per_gpu") as caught:
            for _ in range(1000):
                next(batches)
        assert "\n" not in str(caught.value)


CUSTOM_DATASET = """
import random
import numpy as np
import torch
from torch.utils import data
from {registry} import REGISTRY

@REGISTRY.register()
class NoiseDataset(data.Dataset):
    def __init__(self, opt):
        self.opt = opt
        self.kind = opt["io_backend"].pop("type")

    def __len__(self):
        return self.opt["count"]

    def __getitem__(self, index):
        value = random.random() + np.random.rand() + torch.rand(1).item()
        lq = torch.full((3, self.opt["gt_size"] // self.opt["scale"], 4), value)
        return {{"lq": lq, "gt": lq, "lq_path": str(index), "gt_path": str(index)}}
"""


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """Settings of a dataset as BasicSR's users write them, found by its file in a package of its own."""
    package = f"package_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from basicsr.utils.registry import Registry\nREGISTRY = Registry('dataset', '{package}', '_dataset')\n"
    )
    (folder / "noise_dataset.py").write_text(CUSTOM_DATASET.format(registry=package))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry = __import__(package).REGISTRY
    monkeypatch.setattr(loading, "DATASET_REGISTRY", registry)
    return {"io_backend": {"type": "disk"}, "count": 6, "gt_size": 16}


class TestBasicSRsOwnDatasets:
    def test_are_found_by_name_and_repeat_with_any_number_of_workers(self, noise):
        settings = Settings(noise, type="NoiseDataset")
        expected = flat(load(settings))
        assert_same(flat(load(settings)), expected)
        assert_same(flat(load(Settings(noise, type="NoiseDataset", num_worker_per_gpu=2))), expected)
        assert_same(flat(load(settings, start_iteration=2)), expected[2:])
        assert len({float(image.mean()) for batch in expected for image in batch.lq}) == 20

    def test_leave_the_global_generators_and_the_options_alone(self, noise):
        with preserved_global_state():
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            expected = float(torch.rand(1)), np.random.rand(), random.random()
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            load(Settings(noise, type="NoiseDataset"))
            assert (float(torch.rand(1)), np.random.rand(), random.random()) == expected
        assert noise["io_backend"] == {"type": "disk"}

    def test_repeat_in_evaluation(self, noise):
        dataset = build_eval_dataset(Settings(noise, type="NoiseDataset", phase="val"))
        first = [dataset[index]["lq"] for index in range(len(dataset))]
        again = [dataset[index]["lq"] for index in reversed(range(len(dataset)))]
        assert all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True))

    def test_that_are_empty_are_refused(self, noise):
        with pytest.raises(DataError, match="dataset tiny is empty"):
            load(Settings({**noise, "count": 0}, type="NoiseDataset"))


def test_evaluation_gives_whole_pairs_in_order(arguments):
    dataset = build_eval_dataset(Settings(arguments, phase="val"))
    assert len(dataset) == 6
    assert dataset[5]["gt_path"].endswith("img005.png")
    assert dataset[5]["gt"].shape == (3, 48, 48)


def iterate_for_ever(settings: Settings, queue: Any) -> None:
    place = {"seed": 0, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 10**9}
    batches = iter(build_train_loader(settings, accumulate=1, on_gpu=False, **place))
    for _ in range(settings.num_worker_per_gpu):
        next(batches)  # one of each worker: all have come up
    queue.put([child.pid for child in multiprocessing.active_children()])
    for _ in batches:
        time.sleep(0.01)


def is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, and the parent's death signal is Linux's")
class TestWorkers:
    @pytest.fixture
    def running(self, arguments):
        """A process that iterates, and the ids of its workers."""
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=iterate_for_ever, args=(Settings(arguments, num_worker_per_gpu=2), queue))
        process.start()
        workers = queue.get(timeout=60)
        yield process, workers
        process.kill()
        process.join()

    def test_end_at_once_when_their_parent_is_killed(self, running):
        process, workers = running
        assert len(workers) == 2 and all(map(is_alive, workers))
        process.kill()
        process.join()
        deadline = time.monotonic() + 5
        while any(map(is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_alive, workers))

    def test_that_stand_still_hold_up_no_run_that_is_to_stop(self, arguments, monkeypatch):
        monkeypatch.setattr(loading, "_ASK_SECONDS", 0.1)
        before, asked = set(multiprocessing.active_children()), []
        place = {"seed": 0, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 100}
        loader = build_train_loader(Settings(arguments, num_worker_per_gpu=1), accumulate=1, on_gpu=False, **place)
        feed = PrefetchedBatches(loader.until(lambda: asked.append(1) or len(asked) > 1))
        feed.fill()
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        given = list(feed)
        assert 1 <= len(given) < 100 and len(asked) == 2, "what was loaded before is trained on"
        assert isinstance(feed.failure, Preempted) and not worker.is_alive()

    def test_leave_signals_at_the_terminal_to_their_parent(self, running):
        process, workers = running
        for worker in workers:
            os.kill(worker, signal.SIGINT)
            assert os.getpgid(worker) != os.getpgid(process.pid)
        time.sleep(0.5)
        assert all(map(is_alive, workers)) and process.is_alive()

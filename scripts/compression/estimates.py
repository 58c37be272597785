"""The plan of a run, with estimates of time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from study.execution import threads_for
from torch import nn

from basicsr.archs import build_network
from basicsr.data import build_eval_dataset
from basicsr.utils.complexity import count_multiply_adds
from compression.candidates import Candidate
from compression.figures import images_of
from compression.options import Settings
from compression.progress import Progress, duration

_SIDE = 48  # LR pixels
_EXPORT_SECONDS = 8.0  # of a small network
_OF_FAKES = 1.5  # a step with fake quantisation takes so many times as long


def show_plan(
    settings: Settings, candidates: Sequence[Candidate], teacher: nn.Module, folder: Path, progress: Progress
) -> None:
    """Prints the steps, and about how long each takes on this machine, by a few passes timed now."""
    options, compress = settings.options, settings.compress
    torch.set_num_threads(threads_for(1))
    lines: list[tuple[str, float]] = []
    pixel = _seconds_of_pass(teacher, _SIDE) / _SIDE**2
    times = 8 if compress.cache_self_ensemble else 1
    for key, block in options.datasets_of("train").items():
        dataset = images_of(block)
        pixels = _pixels(dataset, options.scale)
        given = block.arguments.get("teacher_cache")
        what = f"teacher's outputs, {key}: {len(dataset)} images"
        lines.append(
            (f"{what}, from {given}" if given else what, 0.0 if given or not compress.cache else pixels * pixel * times)
        )
    sets = [build_eval_dataset(block) for block in settings.judging.datasets_of("val", "test").values()]
    judged = sum(_pixels(dataset, 1) for dataset in sets)
    lines.append((f"teacher on {len(sets)} sets", judged * pixel))
    latency = compress.latency
    of_ms = compress.budget.kind == "ms" and compress.measurements is None
    timed = len(candidates) if of_ms else min(compress.search.candidates, len(candidates))
    what = f"{timed} untrained candidates on {latency.target}, {latency.precision}: exported and timed"
    lines.append((what, timed * (_EXPORT_SECONDS + latency.seconds)))
    by_cost = sorted(candidates, key=lambda candidate: count_of(candidate))
    middle = by_cost[len(by_cost) // 2]
    step = _seconds_of_step(settings, middle)
    left, search = min(compress.search.candidates, len(candidates)), compress.search
    before = 0
    for rung in range(search.rungs):
        iterations = search.iterations * search.eta**rung
        what = f"search, rung {rung + 1}: {left} candidates to iteration {iterations}"
        lines.append((what, left * (iterations - before) * step))
        left, before = math.ceil(left / search.eta), iterations
    total = options.train.total_iter
    lines.append((f"winner distilled: {total} iterations", total * step))
    if compress.compare is not None:
        seeds = compress.compare.seeds
        count = 2 * len(seeds) - (options.manual_seed in seeds)
        lines.append((f"compared over {len(seeds)} seeds: {count} more trainings", count * total * step))
    if compress.quantize is not None and compress.quantize.iterations:
        lines.append(
            (
                f"quantised with distillation: {compress.quantize.iterations} iterations",
                _OF_FAKES * compress.quantize.iterations * step,
            )
        )
    files = sum(len(entry.precisions) for entry in compress.targets)
    lines.append((f"{files} files for {len(compress.targets)} targets", files * 2 * _EXPORT_SECONDS))
    progress.say(f"run {options.name}, in {folder}: {len(candidates)} candidates")
    for number, (what, seconds) in enumerate(lines, 1):
        progress.say(f"[{number}/{len(lines)}] {what}: about {duration(seconds)}")
    progress.say(f"all: about {duration(sum(seconds for _, seconds in lines))}, as {middle.label} is timed now")


def count_of(candidate: Candidate) -> int:
    """Multiply-adds of a small image."""
    network = build_network(candidate.block)
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    return count_multiply_adds(network, (channels, _SIDE, _SIDE))


def _pixels(dataset: object, scale: int) -> float:
    """LR pixels of a set, by its first image."""
    first = dataset[0]  # type: ignore[index]
    image = first["lq"] if isinstance(first, Mapping) else first.lq
    return float(len(dataset) * image.shape[-1] * image.shape[-2])  # type: ignore[arg-type]


@torch.inference_mode()
def _seconds_of_pass(network: nn.Module, side: int) -> float:
    image = torch.rand(1, 3, side, side)
    network(image)
    started = time.perf_counter()
    network(image)
    return time.perf_counter() - started


def _seconds_of_step(settings: Settings, candidate: Candidate) -> float:
    block = settings.options.datasets["train"]
    side = int(block.arguments.get("gt_size") or _SIDE * settings.options.scale) // settings.options.scale
    network = build_network(candidate.block)
    images = torch.rand(block.batch_size_per_gpu, 3, side, side)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        network(images).mean().backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])

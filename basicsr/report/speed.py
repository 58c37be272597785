"""Latency of networks, timed in turn, with its spread and the reasons to doubt it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from basicsr.utils.misc import wait_for
from basicsr.utils.pass_times import processor
from basicsr.utils.timing import FEWEST_ROUNDS, Measured, Spread, cpu_times, doubt, in_turn, load_between, spread

MOST_SECONDS = 120.0  # for all networks together; only a pass that has begun is waited for
_SECONDS_EACH = 5.0  # enough for one network
_ROUNDS = 15
_SAMPLE_SECONDS = 0.01  # of a fast network several passes are timed at once
_WARM_UP_SIDE = 64


@dataclass(frozen=True)
class Latencies:
    """Seconds of a pass by architecture, why they are no figures to quote, if so, and remarks on untimed networks."""

    spreads: Mapping[str, Spread] = field(default_factory=dict)
    doubt: str = ""
    remarks: tuple[str, ...] = ()


class Stopwatch:
    """Times networks together on an image of `input_shape` (C, H, W), so that other load meets them alike."""

    def __init__(self, input_shape: tuple[int, int, int], device: torch.device) -> None:
        self._shape, self._device = input_shape, device
        self._networks: dict[str, nn.Module] = {}
        self._labels: dict[str, str] = {}

    def add(self, label: str, network: nn.Module) -> str:
        """Keeps a network, of equal ones the first, in memory of the CPU; returns the name of its architecture."""
        name = architecture(network)
        if name not in self._networks:
            self._networks[name], self._labels[name] = network.cpu().eval(), label
        return name

    def announce(self, say: Callable[[str], object]) -> None:
        """Says how many networks will be timed, and how long that may take."""
        if count := len(self._networks):
            most = min(MOST_SECONDS, _SECONDS_EACH * count)
            say(f"timing {count} architecture(s) in turn: about {most:.0f} s, {MOST_SECONDS:.0f} s at most")

    @torch.no_grad()
    def measure(self, should_stop: Callable[[], bool] = lambda: False) -> Latencies:
        """Times float32 passes of one random image, all networks in turn, 5 seconds each but three rounds."""
        end = time.perf_counter() + MOST_SECONDS
        image = torch.rand(1, *self._shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        part = image[..., :_WARM_UP_SIDE, :_WARM_UP_SIDE].contiguous()
        sides: dict[str, Callable[[], float]] = {}
        remarks: list[str] = []
        seconds_of_round = 0.0
        for name, network in self._networks.items():
            try:
                self._seconds(network.to(self._device), part, 1)
                seconds = self._seconds(network, part, 1)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                remarks.append(f"{self._labels[name]} was not timed: {str(error).splitlines()[0]}")
                continue
            expected = max(seconds * image.numel() / part.numel(), 1e-6)
            if time.perf_counter() + seconds_of_round + expected > end:
                remarks.append(f"{self._labels[name]} was not timed: a pass would take about {expected:.0f} s")
                continue
            passes = max(1, math.ceil(_SAMPLE_SECONDS / expected))
            sides[name] = partial(self._seconds, network, image, passes)
            seconds_of_round += max(expected, _SAMPLE_SECONDS)
        if not sides:
            return Latencies(remarks=tuple(remarks))
        started = time.perf_counter()
        enough = started + min(_SECONDS_EACH * len(sides), MOST_SECONDS)

        def goes_on(measured: Measured) -> bool:
            now, rounds = time.perf_counter(), len(next(iter(measured.values())))
            next_ends = now + (now - started) / rounds
            return not should_stop() and next_ends < (end if rounds < FEWEST_ROUNDS else min(enough, end))

        warm_up = int((FEWEST_ROUNDS + 1) * seconds_of_round < end - started)
        before = cpu_times()
        try:
            times = in_turn(sides, _ROUNDS, warm_up=warm_up, goes_on=goes_on)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            remarks.append(f"networks were not timed: {str(error).splitlines()[0]}; make report: input smaller")
            return Latencies(remarks=tuple(remarks))
        spreads = {name: spread(seconds) for name, seconds in times.items()}
        labelled = {self._labels[name]: found for name, found in spreads.items()}
        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        load = load_between(before, cpu_times(), threads)
        return Latencies(spreads, doubt(labelled, len(next(iter(times.values()))), load), tuple(remarks))

    def _seconds(self, network: nn.Module, image: torch.Tensor, passes: int) -> float:
        wait_for(self._device)
        start = time.perf_counter()
        for _ in range(passes):
            network(image)
        wait_for(self._device)
        return (time.perf_counter() - start) / passes


def architecture(network: nn.Module) -> str:
    """A hash of the modules, settings and shapes; networks that differ only in weights share it."""
    parts: list[Any] = []
    for name, module in network.named_modules():
        settings = {key: value for key, value in vars(module).items() if key[:1] != "_" and key != "training"}
        plain = sorted((key, repr(value)) for key, value in settings.items() if _is_plain(value))
        parts.append((name, type(module).__module__, type(module).__qualname__, plain))
    for tensors in (network.named_parameters(), network.named_buffers()):
        parts += [(name, tuple(value.shape), str(value.dtype)) for name, value in tensors]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def device_name(device: torch.device) -> str:
    """The device by its maker's name; for a CPU also the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{processor()[0]}, {threads} thread{'s' if threads > 1 else ''}"

"""How long a forward pass takes, and on what."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.misc import wait_for

_MOST_REPEATS = 100
_WARM_UP_SIDE = 64


@torch.no_grad()
def measure_seconds(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    device: torch.device,
    *,
    budget_seconds: float = 20.0,
) -> float:
    """Median seconds of a forward pass of one image in float32, with the network in eval mode.

    Memory, kernels and clocks are warmed up first: with a pass of the whole input where the budget allows for it, else
    with a smaller one. Passes are timed, at most 100, until the budget is spent; one is timed in any case.
    Random numbers as inputs, since the time does not depend on them.

    Args:
        network: takes (1, C, H, W); moved to `device`, put in eval mode, and back as it was.
        input_shape: (C, H, W).
        device: where to run; waited for before and after each pass.
        budget_seconds: how long to take, warming up included; a slow network may take two passes longer.

    Raises:
        DataError: the network does not take such an input.
        MachineError: there is not enough memory for it.
    """
    was_training = network.training
    network.to(device).eval()
    whole = torch.rand(1, *input_shape, device=device)
    try:
        return _median(lambda part: network(part), whole, budget_seconds)
    except torch.OutOfMemoryError as error:
        told = _told(network, input_shape)
        raise MachineError(f"{told} do not fit into memory; make report: input smaller") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{_told(network, input_shape)}: the network does not take them ({reason})") from error
    finally:
        network.train(was_training)


def device_name(device: torch.device) -> str:
    """The device by its maker's name; for a CPU also the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _median(run: Callable[[torch.Tensor], object], whole: torch.Tensor, budget_seconds: float) -> float:
    end = time.perf_counter() + budget_seconds
    part = whole[..., :_WARM_UP_SIDE, :_WARM_UP_SIDE].contiguous()
    _timed(run, part)
    expected = _timed(run, part) * whole.numel() / part.numel()
    if whole.is_cuda or time.perf_counter() + 2 * expected < end:
        _timed(run, whole)
    times = [_timed(run, whole)]
    while len(times) < _MOST_REPEATS and time.perf_counter() + times[-1] < end:
        times.append(_timed(run, whole))
    return statistics.median(times)


def _timed(run: Callable[[torch.Tensor], object], image: torch.Tensor) -> float:
    wait_for(image.device)
    start = time.perf_counter()
    run(image)
    wait_for(image.device)
    return time.perf_counter() - start


def _told(network: nn.Module, input_shape: tuple[int, int, int]) -> str:
    return f"timing {type(network).__name__}: inputs of {'x'.join(map(str, input_shape))}"


def _cpu_name() -> str:
    """From Linux's /proc/cpuinfo, else what Python knows of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine() or "CPU"

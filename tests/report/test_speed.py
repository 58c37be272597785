"""Timing: how often and on what a network runs; seconds themselves are nowhere asserted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.report.speed import device_name, measure_seconds
from basicsr.utils.errors import DataError, MachineError

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Remembers the shapes it is given, and whether it was in eval mode without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        self.modes.add((self.training, torch.is_grad_enabled()))
        return x * self.weight


def test_a_slow_network_is_warmed_up_on_less_and_timed_once():
    network = Recorder().train()
    assert measure_seconds(network, (3, 128, 96), CPU, budget_seconds=0.0) > 0
    assert network.shapes == [(1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 128, 96)]
    assert network.modes == {(False, False)}
    assert network.training


def test_a_fast_network_is_timed_at_most_a_hundred_times_after_warming_up():
    network = Recorder().eval()
    assert measure_seconds(network, (1, 32, 80), CPU, budget_seconds=3600.0) > 0
    assert network.shapes == [(1, 1, 32, 64)] * 2 + [(1, 1, 32, 80)] * 101
    assert not network.training


def test_an_input_that_does_not_fit_the_network_is_told_in_one_line():
    network = nn.Conv2d(3, 3, 3).train()
    with pytest.raises(DataError, match=r"timing Conv2d: inputs of 1x32x32: the network does not take them") as caught:
        measure_seconds(network, (1, 32, 32), CPU)
    assert "\n" not in str(caught.value)
    assert network.training


def test_too_little_memory_names_the_option_to_change():
    class Hungry(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB\nmore")

    with pytest.raises(MachineError, match="do not fit into memory; make report: input smaller"):
        measure_seconds(Hungry(), (3, 32, 32), CPU)


def test_the_device_is_named_with_its_threads():
    name = device_name(CPU)
    threads = torch.get_num_threads()
    assert name.endswith(f", {threads} thread" + ("s" if threads > 1 else ""))
    assert len(name) > len(", 1 thread")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_whole_input_warms_up_and_the_gpu_is_named():
    device = torch.device("cuda", 0)
    network = Recorder()
    assert measure_seconds(network, (3, 128, 96), device, budget_seconds=0.0) > 0
    assert network.shapes[2:] == [(1, 3, 128, 96)] * 2
    assert device_name(device) == torch.cuda.get_device_name(device)

"""Latencies: what follows from given times and counters; how networks are run; seconds themselves are not asserted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.report.speed import Latencies, Stopwatch, architecture, device_name
from basicsr.utils.timing import Spread, doubt

CPU = torch.device("cpu")
STEADY = Spread(2.0, 1.9, 2.1)


class Recorder(nn.Module):
    """Notes in a list that several share that it was run, on what, and in which mode."""

    def __init__(self, name: str, runs: list[tuple], width: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._name, self._runs = name, runs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._runs.append((self._name, tuple(x.shape), self.training, torch.is_grad_enabled(), x.dtype))
        return x * self.weight[0]


def edsr(**changes):
    return build_network(
        {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2, **changes}
    )


def test_times_of_a_quiet_machine_are_not_doubted():
    assert doubt({"a": STEADY, "b": Spread(1.0, 0.93, 1.07)}, 3, "") == ""


def test_load_a_wide_spread_and_too_few_rounds_are_told():
    assert doubt({"a": STEADY}, 9, "other programs took 0.3 of 2 cores") == "other programs took 0.3 of 2 cores"
    told = doubt({"a": STEADY, "b": Spread(2.341, 2.0, 4.084)}, 9, "")
    assert told == "the middle half of the times of b spreads over 89 %"
    assert doubt({"a": STEADY}, 1, "") == "there was time for 1 round only"
    assert doubt({"a": Spread(1.0, 0.5, 1.5)}, 2, "load").count(";") == 2


def test_networks_of_one_architecture_share_a_figure_whatever_their_weights_are():
    torch.manual_seed(0)
    first, second = edsr(), edsr()
    assert not torch.equal(first.conv_first.weight, second.conv_first.weight)
    assert architecture(first) == architecture(second) == architecture(copy.deepcopy(first).eval())
    others = [edsr(num_feat=6), edsr(num_block=2), edsr(upscale=3), edsr(res_scale=0.1), nn.Conv2d(3, 3, 3)]
    strided = [nn.Conv2d(3, 3, 3, stride=stride) for stride in (1, 2)]  # equal names and shapes
    assert len({architecture(network) for network in (first, *others, *strided)}) == 7
    windows = {
        architecture(
            build_network({"type": "SwinIR", "embed_dim": 4, "depths": [1], "num_heads": [1], "window_size": side})
        )
        for side in (4, 8)
    }
    assert len(windows) == 2


def test_all_networks_are_timed_in_turn_equal_ones_once():
    runs: list[tuple] = []
    stopwatch = Stopwatch((3, 80, 72), CPU)
    names = [
        stopwatch.add("one", Recorder("one", runs).train()),
        stopwatch.add("equal", Recorder("equal", runs)),
        stopwatch.add("other", Recorder("other", runs, width=2)),
    ]
    assert names[0] == names[1] != names[2] and not runs
    found = stopwatch.measure(should_stop=lambda: len(runs) > 40)
    assert set(found.spreads) == {names[0], names[2]}
    assert all(0 < spread.low <= spread.median <= spread.high for spread in found.spreads.values())
    assert {run[0] for run in runs} == {"one", "other"}
    assert {run[2:] for run in runs} == {(False, False, torch.float32)}  # eval mode, no gradients
    assert {run[1] for run in runs} == {(1, 3, 80, 72), (1, 3, 64, 64)}
    whole = [run[0] for run in runs if run[1] == (1, 3, 80, 72)]
    turns = [name for index, name in enumerate(whole) if index == 0 or whole[index - 1] != name]
    assert turns[:3] == ["other", "one", "other"]  # every other round backwards, the first to warm up


def test_where_there_is_no_time_for_rounds_the_figure_is_doubted():
    found = Latencies()
    runs: list[tuple] = []
    stopwatch = Stopwatch((1, 8, 8), CPU)
    stopwatch.add("one", Recorder("one", runs))
    found = stopwatch.measure(should_stop=lambda: True)
    assert "there was time for 1 round only" in found.doubt and len(found.spreads) == 1


def test_a_network_that_cannot_be_timed_is_told_and_the_others_are():
    class Hungry(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB\nmore")

    runs: list[tuple] = []
    stopwatch = Stopwatch((3, 32, 32), CPU)
    stopwatch.add("x2 hungry", Hungry())
    kept = stopwatch.add("x2 other", Recorder("other", runs))
    found = stopwatch.measure(should_stop=lambda: len(runs) > 20)
    assert found.remarks == ("x2 hungry was not timed: CUDA out of memory. Tried to allocate 99 GiB",)
    assert list(found.spreads) == [kept]
    assert Stopwatch((3, 8, 8), CPU).measure() == Latencies()


def test_a_network_that_would_take_too_long_is_left_out(monkeypatch):
    from basicsr.report import speed

    monkeypatch.setattr(speed, "MOST_SECONDS", 0.0)
    stopwatch = Stopwatch((3, 32, 32), CPU)
    stopwatch.add("slow", nn.Conv2d(3, 3, 3))
    found = stopwatch.measure()
    assert not found.spreads and found.remarks[0].startswith("slow was not timed: a pass would take about")


def test_the_device_is_named_with_its_threads():
    name = device_name(CPU)
    threads = torch.get_num_threads()
    assert name.endswith(f", {threads} thread" + ("s" if threads > 1 else ""))
    assert len(name) > len(", 1 thread")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_networks_are_timed_there_and_the_gpu_is_named():
    device = torch.device("cuda", 0)
    stopwatch = Stopwatch((3, 64, 64), device)
    name = stopwatch.add("one", edsr())
    assert stopwatch.measure().spreads[name].median > 0
    assert device_name(device) == torch.cuda.get_device_name(device)

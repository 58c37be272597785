"""Whether a precision is faster than float32: what follows from given times, and what measuring leaves alone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.utils.pass_times import (
    PassTimes,
    fitting_size,
    has_units,
    input_channels,
    is_clear,
    measure,
    pick,
    processor,
    slow_mode,
    times_of_network,
    warn_if_slow,
)
from basicsr.utils.timing import ratios

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_auto_takes_bf16_only_where_units_and_times_agree():
    faster = PassTimes(float32=(4.0, 5.0, 6.0), other=(2.0, 2.0, 2.0))
    assert pick(True, faster) == ("bf16", "bf16 takes 0.40 times as long as float32 (0.37 to 0.45)")
    assert pick(False, faster) == ("none", "this device has no instructions for bf16")
    assert pick(True, None) == ("none", "bf16 could not be measured")
    assert pick(True, PassTimes((1.0, 1.0, 1.0), (1.0, 0.99, 1.0)))[0] == "none"  # no gain to speak of
    assert pick(True, PassTimes((1.0,), (9.0,)))[0] == "none"
    assert pick(True, PassTimes((1.0,), (1.08,)))[0] == "none"
    assert pick(True, PassTimes((1.0,), (1.08,)), in_part=True)[0] == "bf16"  # what is left out gains more
    assert pick(True, PassTimes((1.0,), (1.2,)), in_part=True)[0] == "none"


def test_the_middle_of_the_rounds_counts_not_what_else_the_machine_did_in_one_of_them():
    assert pick(True, PassTimes((2.0, 2.0, 2.0, 2.0, 2.0), (1.0, 1.0, 30.0, 1.0, 1.0)))[0] == "bf16"
    assert pick(True, PassTimes((30.0, 2.0, 2.0), (4.0, 4.0, 4.0)))[0] == "none"


def test_a_slow_mode_is_told_with_its_factor():
    slow = PassTimes(float32=(1.0, 1.0, 1.0), other=(7.0, 7.5, 8.0))
    assert slow_mode("amp: bf16", "bf16", False, slow) == [
        "amp: bf16 is slow here: it takes 7.50 times as long as float32 (7.25 to 7.75): this device has no"
        " instructions for bf16; none (float32) is faster"
    ]
    assert slow_mode("val: amp: fp16", "fp16", True, slow)[0].count("no instructions") == 0
    for other in ((0.5,), (1.0,), (1.09,)):
        assert slow_mode("amp: bf16", "bf16", True, PassTimes((1.0,), other)) == []
    assert slow_mode("amp: bf16", "bf16", False, None) == []


def test_rounds_end_where_their_middle_half_is_clear_of_what_decides():
    def clear(*gains: float) -> bool:
        return is_clear(ratios(gains, [1.0] * len(gains)), decides=1.0)

    assert clear(1.2, 1.2, 1.2, 9.0, 0.1) and clear(0.8, 0.8, 0.8, 9.0, 0.1)
    assert not clear(1.05, 1.2, 1.3, 1.05, 1.05) and not clear(0.8, 0.8, 0.95, 0.95, 0.95)
    assert not clear(0.5, 0.5, 1.0, 2.0, 2.0)


def test_a_pass_has_as_many_and_as_large_images_as_its_time_allows_for():
    assert fitting_size(0.06 / (3.5 * 48 * 48), 8, 48, 16) == (3, 48)
    assert fitting_size(1e-9, 8, 48, 16) == (8, 48)
    assert fitting_size(0.06 / (30 * 30), 8, 48, 16) == (1, 24)  # discriminators need multiples of 8
    assert fitting_size(1.0, 8, 48, 16) == (1, 16)
    assert fitting_size(0.0, 2, 5, 5) == (2, 5)


def test_both_ways_are_run_in_turn_on_the_same_images_in_the_run_s_layout():
    seen = []

    def run(modes, images):
        assert images.is_contiguous(memory_format=torch.channels_last)
        seen.append((modes, tuple(images.shape)))

    times = measure(run, ("none", "none"), ("bf16", "none"), (4, 2, 24), CPU, 0.5, torch.channels_last)
    assert 1 <= len(times.float32) == len(times.other) <= 25 and min(times.float32 + times.other) > 0
    assert {shape for _, shape in seen[:2]} == {(1, 2, 16, 16)}
    counted = len(times.float32) * 2
    ((number, channels, height, width),) = {shape for _, shape in seen[-counted:]}
    assert 1 <= number <= 4 and channels == 2 and 16 <= height == width <= 24
    rounds = [{modes for modes, _ in seen[index : index + 2]} for index in range(len(seen) - counted, len(seen), 2)]
    assert all(both == {("none", "none"), ("bf16", "none")} for both in rounds)


def test_measuring_changes_no_weights_no_statistics_and_no_random_numbers():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    times = times_of_network(network, CPU, "bf16", 1.0)
    assert times is not None and len(times.float32) >= 1
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_that_does_not_run_is_not_measured_and_float32_is_not_either():
    assert times_of_network(nn.Linear(5, 5), CPU, "bf16", 1.0) is None
    assert times_of_network(nn.Conv2d(3, 3, 1), CPU, "none", 1.0) is None
    assert warn_if_slow(nn.Linear(5, 5), CPU, "fp16", "--amp fp16") == []


@pytest.mark.parametrize(
    "block",
    [
        {"type": "EDSR", "num_in_ch": 2, "num_out_ch": 2, "num_feat": 4, "num_block": 1, "rgb_mean": [0, 0]},
        {"type": "SwinIR", "in_chans": 2, "embed_dim": 4, "depths": [1], "num_heads": [1], "window_size": 8},
        {"type": "NAFNet", "img_channel": 2, "width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1]},
        {"type": "Restormer", "inp_channels": 2, "out_channels": 2, "dim": 8},
    ],
    ids=lambda block: block["type"],
)
def test_channels_are_the_network_s_own(block):
    assert input_channels(build_network(block)) == 2


def test_units_are_what_the_processor_says(monkeypatch):
    from basicsr.utils import pass_times

    name, features = processor()
    assert name and isinstance(features, frozenset)
    for flags, bf16, fp16 in (({"avx2"}, False, False), ({"avx512_bf16"}, True, False), ({"asimdhp"}, False, True)):
        monkeypatch.setattr(pass_times, "processor", lambda flags=flags: ("a processor", frozenset(flags)))
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
        assert (has_units(CPU, "bf16"), has_units(CPU, "fp16")) == (bf16, fp16)
    monkeypatch.setattr(pass_times, "processor", lambda: ("a processor", frozenset({"avx512_bf16"})))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not has_units(CPU, "bf16")


@pytest.mark.long
@pytest.mark.skipif(not has_units(CPU, "bf16"), reason="needs a processor with bf16")
def test_a_processor_without_the_instructions_is_recognised():
    """oneDNN and PyTorch are told to use AVX2 alone, as on a processor that has no more."""
    asks = "import torch; from basicsr.utils.pass_times import has_units; print(has_units(torch.device('cpu'), 'bf16'))"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    told = subprocess.run([sys.executable, "-c", asks], env=limited, cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == "False\n"

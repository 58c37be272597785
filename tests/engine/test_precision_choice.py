"""`amp: auto`: chosen once, by rank 0, kept by the run. Choices come from states or given times, not from a clock."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from support.training import changed, checkpoint_of, differences, finish, run_ranks, told, without_teacher

from basicsr.config.load import load_options
from basicsr.engine import precision_choice
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.precision_choice import Choice, choose_precision, kept_precision, settled
from basicsr.engine.process.distributed import RankInfo, distributed
from basicsr.engine.resuming import check_options
from basicsr.utils import pass_times
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.pass_times import PassTimes

HERE = torch.device("cpu")


def options_of(mcadkd, **changes):
    return load_options(changed(mcadkd, **changes), training=True)


def with_times(monkeypatch, units: bool, times: PassTimes | None) -> list[tuple]:
    """Puts times in the place of measured ones; returns what was asked for."""
    asked: list[tuple] = []
    monkeypatch.setattr(precision_choice, "has_units", lambda device, amp: units)
    monkeypatch.setattr(
        precision_choice, "_times", lambda options, plain, other, *_: asked.append((plain, other)) or times
    )
    return asked


TWICE_AS_FAST, SEVEN_TIMES = PassTimes((2.0,), (1.0,)), PassTimes((1.0,), (7.0,))


def test_auto_takes_what_the_times_say(mcadkd, monkeypatch):
    options = options_of(mcadkd, amp="auto")
    asked = with_times(monkeypatch, True, TWICE_AS_FAST)
    choice = choose_precision(options, HERE, None)
    assert choice.kept() == {"amp": "bf16", "amp_teacher": "bf16"} and not choice.warnings
    told = "amp auto: bf16; bf16 takes 0.50 times as long as float32 (0.50 to 0.50), the methods' heads left out"
    assert choice.reason == told
    assert asked == [(("none", "none"), ("bf16", "bf16"))]
    with_times(monkeypatch, True, PassTimes((1.0,), (1.1,)))  # heads gain more than these passes lose
    assert choose_precision(options, HERE, None).amp == "bf16"
    assert choose_precision(options_of(without_teacher(mcadkd), amp="auto"), HERE, None).amp == "none"
    with_times(monkeypatch, True, SEVEN_TIMES)
    assert choose_precision(options, HERE, None).kept() == {"amp": "none", "amp_teacher": "none"}
    asked = with_times(monkeypatch, False, TWICE_AS_FAST)
    assert choose_precision(options, HERE, None).amp == "none" and asked == []  # without units nothing is measured


def test_the_teacher_s_precision_may_be_chosen_by_itself(mcadkd, monkeypatch):
    asked = with_times(monkeypatch, True, TWICE_AS_FAST)
    choice = choose_precision(options_of(mcadkd, amp_teacher="auto"), HERE, None)
    assert choice.kept() == {"amp": "none", "amp_teacher": "bf16"}
    choice = choose_precision(options_of(mcadkd, amp="auto", amp_teacher="none"), HERE, None)
    assert choice.kept() == {"amp": "bf16", "amp_teacher": "none"}
    assert asked == [(("none", "none"), ("none", "bf16")), (("none", "none"), ("bf16", "none"))]


def test_a_run_keeps_its_precision_on_a_machine_that_would_choose_another(mcadkd, monkeypatch):
    with_times(monkeypatch, False, SEVEN_TIMES)
    options = options_of(mcadkd, amp="auto")
    state = {"precision": {"amp": "bf16", "amp_teacher": "none"}}
    choice = choose_precision(options, HERE, state)
    assert choice.kept() == state["precision"]
    assert choice.reason == "amp auto: bf16, the teacher float32, as in the run so far"
    (warning,) = choice.warnings
    assert warning.endswith("a run keeps its precision, but for amp: none with --allow_config_change")
    assert "takes 7.00 times as long as float32" in warning and "no instructions for bf16" in warning
    computed = settled(options, choice.kept())
    assert (computed.amp, computed.amp_teacher, options.amp) == ("bf16", "none", "auto")


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_slow_mode_that_was_asked_for_is_warned_of_with_the_factor(mcadkd, monkeypatch, amp):
    with_times(monkeypatch, False, SEVEN_TIMES)
    choice = choose_precision(options_of(mcadkd, amp=amp), HERE, None)
    assert choice.amp == amp and not choice.reason
    assert choice.warnings[0].startswith(f"amp: {amp} is slow here: it takes 7.00 times as long as float32")
    with_times(monkeypatch, True, TWICE_AS_FAST)
    assert choose_precision(options_of(mcadkd, amp=amp), HERE, None).warnings == ()
    asked = with_times(monkeypatch, False, SEVEN_TIMES)
    assert choose_precision(options_of(mcadkd), HERE, None) == Choice("none", "none") and asked == []


def test_a_slow_precision_of_validation_is_warned_of(mcadkd, monkeypatch):
    monkeypatch.setattr(pass_times, "times_of_network", lambda *given: SEVEN_TIMES)
    monkeypatch.setattr(pass_times, "has_units", lambda *given: False)
    for amp in ("none", "auto"):
        with_times(monkeypatch, False, None)
        (warning,) = choose_precision(options_of(mcadkd, amp=amp, val__amp="bf16"), HERE, None).warnings
        assert warning.startswith("val: amp: bf16 is slow here: it takes 7.00 times as long as float32")
    assert choose_precision(options_of(mcadkd), HERE, None).warnings == ()


@pytest.mark.parametrize("kept", ["bf16", {"amp": "bf16"}, {"amp": "auto", "amp_teacher": "none"}, {"amp": 1}])
def test_a_state_that_names_no_precision_is_refused(kept):
    with pytest.raises(CheckpointError, match=r"precision is .* must name amp and amp_teacher"):
        kept_precision({"precision": kept})
    assert kept_precision({}) is None


def test_passes_of_the_run_s_networks_leave_weights_and_random_numbers_alone(mcadkd):
    options, built = options_of(mcadkd), []
    build = precision_choice.build_networks
    state = torch.get_rng_state()

    def remembered(*arguments):
        networks = build(*arguments)
        built.append((networks, {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}))
        return networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_choice, "build_networks", remembered)
        times = precision_choice._times(options, ("none", "none"), ("bf16", "bf16"), HERE, 1.0)
    assert times is not None and len(times.float32) == len(times.other) >= 1
    assert torch.equal(state, torch.get_rng_state())
    ((networks, before),) = built
    assert set(networks) == {"g", "t", "d"}
    for name, network in networks.items():
        assert differences(before[name], network.state_dict()) == []
        assert all(parameter.grad is None for parameter in network.parameters())


def test_auto_goes_on_as_the_run_began_bit_for_bit_and_its_record_says_so(mcadkd, tmp_path):
    plain = changed(mcadkd, train__total_iter=4, logger__save_checkpoint_freq=2, logger__print_freq=2, val__val_freq=4)
    whole = finish(changed(plain, amp="bf16"), tmp_path / "whole")
    assert whole["state"]["precision"] == {"amp": "bf16", "amp_teacher": "bf16"}
    finish(changed(plain, amp="bf16", train__total_iter=2), tmp_path / "parts")
    code, errors = told(changed(plain, amp="auto"), tmp_path / "parts", auto_resume=True)
    assert code == 0, errors
    experiment = tmp_path / "parts/experiments/tiny"
    assert differences(whole, checkpoint_of(experiment, 4)) == []
    assert "amp auto: bf16, as in the run so far" in next(experiment.glob("train_tiny_*.log")).read_text()
    starts = json.loads((experiment / "record.json").read_text())["starts"]
    assert [start["precision"]["amp"] for start in starts] == ["bf16", "bf16"]
    assert re.search(r"^amp: auto$", (experiment / "tiny.yml").read_text(), re.MULTILINE)
    resume, _ = CheckpointFolder(experiment).latest()
    for amp, line in (("none", r"  amp: bf16 -> none$"), ("fp16", r"  amp: bf16 -> fp16$")):
        with pytest.raises(OptionsError, match=f"(?m){line}"):
            check_options(resume, options_of(plain, amp=amp), RankInfo(HERE), allow=False)
    assert check_options(resume, options_of(plain, amp="bf16", amp_teacher="bf16"), RankInfo(HERE), allow=False) == []


def choose_as_rank(rank: int, options: dict, out: str) -> None:
    """Chooses where rank 0's machine would take bf16 and rank 1's float32; leaves OUT.RANK."""
    precision_choice.has_units = lambda device, amp: rank == 0
    precision_choice._times = lambda *arguments: TWICE_AS_FAST
    with distributed("pytorch", 0, "gloo") as rank_info:
        choice = choose_precision(load_options(options, training=True), rank_info.device, None)
    Path(f"{out}.{rank}").write_text(repr(choice))


def test_rank_0_decides_for_all(mcadkd, tmp_path):
    run_ranks(choose_as_rank, 2, changed(mcadkd, amp="auto"), str(tmp_path / "choice"))
    first, second = ((tmp_path / f"choice.{rank}").read_text() for rank in range(2))
    assert first == second and "amp='bf16'" in first

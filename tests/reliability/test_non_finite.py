"""What is not finite stops the run before it reaches the weights, on all ranks."""

from __future__ import annotations

import pytest
import torch
from support.training import changed, run_ranks, told, told_by_ranks

LOSS = "BreaksDown"


def plain(options, **changes):
    """The run with its pixel loss and discriminator."""
    short = {"train__total_iter": 6, "logger__save_checkpoint_freq": 2, "val__val_freq": 6}
    return changed(options, **{**short, **changes})


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_one_ranks_nan_stops_both_before_the_update(mcadkd, tmp_path, gradient_only):
    loss = {"type": LOSS, "call": 4, "rank": 1, "gradient_only": gradient_only}
    run_ranks(told_by_ranks, 2, plain(mcadkd, train__pixel_opt=loss), str(tmp_path), {})
    first, second = ((tmp_path / f"told.{rank}").read_text() for rank in (0, 1))
    assert first.startswith("5\n") and second.startswith("5\n")
    (line,) = [line for line in first.splitlines() if "iteration 4" in line]
    broken = "gradient norm = nan" if gradient_only else "l_pix = nan"
    rank = 0 if gradient_only else 1  # gradients are averaged over ranks before they can be looked at
    assert line.startswith(f"[rank 0] error: [rank {rank}] iteration 4: {broken}")
    assert "nothing was updated; batch: " in line and line.endswith("; last good: 2.state")
    assert "img" in line.split("batch: ")[1]
    assert "Traceback" not in first + second
    states = tmp_path / "experiments/tiny/training_states"
    assert sorted(file.name for file in states.iterdir()) == ["2.json", "2.state"]


def test_the_losses_that_are_finite_stand_beside_the_one_that_is_not(mcadkd, tmp_path):
    code, errors = told(plain(mcadkd, train__pixel_opt={"type": LOSS, "call": 1}), tmp_path)
    assert code == 5
    assert "error: iteration 1: l_pix = nan, " in errors and "(l_resp = " in errors.splitlines()[-1]
    assert errors.splitlines()[-1].endswith("; last good: none")


def test_weights_that_an_update_made_infinite_are_not_saved(mcadkd, tmp_path):
    # The gradients are finite; their squares are 0 in float32, by which Adam divides without its epsilon.
    loss = {"type": "L1Loss", "loss_weight": 1e-25}
    others = {"train__resp_kd_opt": loss, "train__contrastive_opt": None, "train__adversarial_opt": None}
    options = plain(mcadkd, train__pixel_opt=loss, network_d=None, logger__save_checkpoint_freq=1, **others)
    code, errors = told(changed(options, train__optim_g={"type": "Adam", "lr": 1e-4, "eps": 0}), tmp_path)
    assert code == 5, errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: iteration 1: network_g has values that are not finite after this update; it is not")
    assert last.endswith("; last good: none")
    assert not list((tmp_path / "experiments/tiny/training_states").iterdir())


def fp16(options, **changes):
    """The run with fp16's loss scale; without what else would overflow."""
    return plain(options, amp="fp16", train__adversarial_opt=None, network_d=None, train__optim_d=None, **changes)


def test_overflow_under_fp16_lowers_the_scale_and_is_no_error(mcadkd, tmp_path):
    # Times the first scale, 65536, gradients of this loss are beyond 65504.
    loss = {"type": "L1Loss", "loss_weight": 300.0}
    code, errors = told(fp16(mcadkd, train__pixel_opt=loss), tmp_path)
    assert code == 0, errors
    state = torch.load(tmp_path / "experiments/tiny/training_states/6.state", weights_only=True)
    assert state["scalers"]["g"]["scale"] < 65536


def test_gradients_that_are_nan_at_any_scale_do_stop_it(mcadkd, tmp_path):
    loss = {"type": LOSS, "call": 2, "gradient_only": True}
    code, errors = told(fp16(mcadkd, train__pixel_opt=loss, train__total_iter=60), tmp_path)
    assert code == 5
    assert "gradient norm = nan" in errors

"""Learning rates, against PyTorch's schedulers and values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from basicsr.config.yaml_files import load_yaml
from basicsr.optim.schedules import build_schedule, warmed_up
from basicsr.utils.errors import OptionsError


def rates_of_torch(make, updates: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = make(optimizer)
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_multi_step_is_torchs():
    schedule = build_schedule({"type": "MultiStepLR", "milestones": (3, 7, 7), "gamma": 0.5})
    expected = rates_of_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7, 7], 0.5), 12)
    assert [schedule.rate(0.5, done) for done in range(12)] == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torchs():
    schedule = build_schedule({"type": "TrueCosineAnnealingLR", "T_max": 10, "eta_min": 0.01})
    expected = rates_of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, 0.01), 11)
    assert [schedule.rate(0.5, done) for done in range(11)] == pytest.approx(expected, rel=1e-9)
    assert schedule.rate(0.5, 25) == pytest.approx(0.01)


def test_restarts_reset_the_rate_and_win_over_milestones():
    schedule = build_schedule(
        {
            "type": "MultiStepRestartLR",
            "milestones": (2, 4, 6),
            "gamma": 0.1,
            "restarts": (0, 4),
            "restart_weights": (1.0, 0.5),
        }
    )
    # By hand, as BasicSR's scheduler: the milestone at 4 coincides with the restart and has no effect.
    assert [schedule.rate(1.0, done) for done in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.5, 0.5, 0.05, 0.05])


def test_cosine_restarts_start_each_period_at_its_weight():
    schedule = build_schedule(
        {"type": "CosineAnnealingRestartLR", "periods": (4, 4), "restart_weights": (1.0, 0.5), "eta_min": 0.0}
    )
    expected = [1, 0.853553, 0.5, 0.146447, 0, 0.426777, 0.25, 0.073223, 0, 0]
    assert [schedule.rate(1.0, done) for done in range(10)] == pytest.approx(expected, abs=1e-6)


def test_cyclic_cosines_are_torchs_from_each_weight_to_each_minimum():
    """Each period is PyTorch's half cosine, from m + w (base - m) to m; a period's first rate is the next update's."""
    periods, weights, minima, base = (5, 7, 4), (1.0, 0.5, 2.0), (0.5, 0.02, 0.1), 0.5
    options = {"periods": periods, "restart_weights": weights, "eta_mins": minima}
    schedule = build_schedule({"type": "CosineAnnealingRestartCyclicLR", **options})
    expected = [base]
    for period, weight, minimum in zip(periods, weights, minima, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([parameter], lr=minimum + weight * (base - minimum))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period, minimum)
        for _ in range(period):
            optimizer.step()
            cosine.step()
            expected.append(optimizer.param_groups[0]["lr"])
    assert [schedule.rate(base, done) for done in range(17)] == pytest.approx(expected, rel=1e-12)
    assert schedule.rate(base, 100) == pytest.approx(0.1)


def test_the_schedule_of_restormers_authors_stays_and_then_falls():
    file = Path(__file__).resolve().parents[2] / "options/base/restormer_authors_schedule.yml"
    schedule = build_schedule(load_yaml(file).data()["train"]["scheduler"])
    assert {schedule.rate(3e-4, done) for done in (0, 1, 50_000, 92_000)} == {3e-4}
    # 208000 updates of a half cosine: after half of them the mean of its ends, after a quarter 1/2 + sqrt(2)/4 of it.
    quarter = 1e-6 + (3e-4 - 1e-6) * (0.5 + math.sqrt(2) / 4)
    found = [schedule.rate(3e-4, done) for done in (144_000, 196_000, 300_000)]
    assert found == pytest.approx([quarter, (3e-4 + 1e-6) / 2, 1e-6], rel=1e-12)


def test_warm_up_is_a_line_to_the_base():
    assert [warmed_up(0.3, 0.4, iteration, 4) for iteration in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.3, 0.3]
    )
    assert warmed_up(0.3, 0.4, 1, -1) == 0.3


def test_no_schedule_is_a_constant_rate():
    assert build_schedule(None).rate(0.7, 10**6) == 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "MultiStepLr", "milestones": (1,)}, "did you mean 'MultiStepLR'"),
        ({"type": "MultiStepLR", "milestone": (1,)}, "did you mean 'milestones'"),
        ({"type": "CosineAnnealingRestartLR", "periods": (1, 2)}, "got 2 and 1"),
        (
            {"type": "CosineAnnealingRestartCyclicLR", "periods": (1, 2), "restart_weights": (1.0, 1.0)},
            "periods: must have as many entries as eta_mins, at least one, got 2 and 1",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(OptionsError, match=message):
        build_schedule(options)

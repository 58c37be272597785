"""Parts of the network that are frozen, or learn at rates of their own, in real runs."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from support.training import changed, checkpoint_of, differences, record_steps, run_ranks, without_teacher

from basicsr.train import train_pipeline
from basicsr.utils.errors import OptionsError

FROZEN = ("conv_first.", "body.0.")


def run(options, root, iterations: int, **arguments) -> list[dict]:
    """The checkpoints after each iteration."""
    options = changed(options, train__total_iter=iterations, logger__save_checkpoint_freq=1)
    folder = train_pipeline(options, root=root, **arguments).folder
    return [checkpoint_of(folder, iteration) for iteration in range(1, iterations + 1)]


def moved(before: dict, after: dict) -> set[str]:
    """The first two names of the parameters that have changed."""
    found = {
        name for name, value in after["g"]["params"].items() if not torch.equal(value, before["g"]["params"][name])
    }
    return {".".join(name.split(".")[:2]) for name in found}


@pytest.fixture
def partly(mcadkd):
    """Decayed by AdamW, so that a weight would move without a gradient, too."""
    optimizer = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}
    return changed(mcadkd, train__freeze=["conv_first", "body.0.*"], train__optim_g=optimizer)


def test_frozen_parts_stay_as_they_were_and_have_no_moments(partly, tmp_path):
    states = run(partly, tmp_path, 3)
    start = states[0]["g"]["params"]
    for first, second in itertools.pairwise(states):
        assert moved(first, second) and not any(name.startswith(FROZEN) for name in moved(first, second))
    group = states[-1]["state"]["optimizers"]["g"]["param_groups"][0]
    assert set(group["names"]) == {name for name in start if not name.startswith(FROZEN) and "mean" not in name}
    assert states[-1]["state"]["optimizers"]["g"]["state"].keys() >= set(group["params"])
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    assert re.search(r"frozen: [\d,]+ of [\d,]+ parameters \(conv_first, body\.0\.\*\)", log.read_text())


def test_parts_frozen_for_a_while_are_then_trained_and_a_resumed_run_is_the_same(partly, tmp_path):
    options = changed(partly, train__freeze_until=2, val__val_freq=1)
    whole = run(options, tmp_path / "whole", 4)
    assert "conv_first.weight" not in moved(whole[0], whole[1]) and "body.0" not in moved(whole[0], whole[1])
    for first, second in itertools.pairwise(whole[1:]):
        assert {"conv_first.weight", "body.0", "body.1"} <= moved(first, second)
    for stop in (1, 3):
        folder = tmp_path / str(stop)
        run(options, folder, stop)
        assert differences(run(options, folder, 4, auto_resume=True)[-1], whole[-1]) == []


def test_two_ranks_release_what_was_frozen_together(partly, tmp_path):
    options = changed(without_teacher(partly), train__freeze_until=2, train__total_iter=4)
    run_ranks(record_steps, 2, options, "pytorch", 4, str(tmp_path / "two"))
    whole = changed(options, datasets__train__batch_size_per_gpu=4)
    run_ranks(record_steps, 1, whole, "pytorch", 4, str(tmp_path / "one"))
    first, second, one = (torch.load(tmp_path / name, weights_only=True) for name in ("two.0", "two.1", "one.0"))
    assert differences(first["weights"], second["weights"]) == []
    for ours, theirs in zip(first["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=3e-5)


def test_freezing_reaches_a_network_that_is_trained_in_the_students_place(mcadkd, tmp_path):
    options = changed(
        mcadkd,
        **dict.fromkeys(("network_d", "train__adversarial_opt", "train__optim_d", "train__contrastive_opt")),
        train__resp_kd_opt=None,
        train__freeze=["body"],
        train__distill={"csd": {"type": "SharedCSD", "vgg_weights": "random"}},
        network_t__num_block=2,
    )
    first, second = run(options, tmp_path, 2)
    assert moved(first, second) and not any(name.startswith("body.") for name in moved(first, second))
    wide = [states["state"]["terms"] for states in (first, second)]
    frozen = [torch.equal(wide[0][name], wide[1][name]) for name in wide[0] if ".wide.body." in name]
    assert frozen and all(frozen)


def test_groups_step_at_their_own_rates_and_the_schedule_scales_each(mcadkd, tmp_path):
    sgd = {"type": "SGD", "lr": 1e-3, "weight_decay": 0.5}
    scheduler = {"type": "MultiStepLR", "milestones": [1], "gamma": 0.5}
    plain = changed(mcadkd, train__optim_g=sgd, train__scheduler=scheduler, train__lr_heads=3e-3)
    groups = [
        {"params": "body.*", "lr": 1e-4},
        {"params": ["conv_first", "upsample"], "weight_decay": 0.0},
        {"params": "distill.contrastive.*tau", "lr": 1e-2},
    ]
    (before, _), (after, last) = (
        run(changed(plain, train__param_groups=found), tmp_path / str(len(found)), 2) for found in ([], groups)
    )
    start = run(changed(plain, train__optim_g__lr=1e-30, train__lr_heads=1e-30), tmp_path / "start", 1)[0]
    for name, weight in start["g"]["params"].items():
        usual, own = (found["g"]["params"][name].double() - weight.double() for found in (before, after))
        if name.startswith("body."):
            torch.testing.assert_close(own, 0.1 * usual, rtol=1e-3, atol=1e-9)
        elif name.startswith(("conv_first", "upsample")):  # less by lr weight_decay w
            torch.testing.assert_close(own, usual + 1e-3 * 0.5 * weight.double(), rtol=1e-3, atol=1e-8)
        else:
            assert torch.equal(own, usual)
    rates = {group["name"]: group["lr"] for group in last["state"]["optimizers"]["g"]["param_groups"]}
    assert rates == pytest.approx(
        {
            "student": 5e-4,
            "heads": 1.5e-3,
            "body.*": 5e-5,
            "conv_first, upsample": 5e-4,
            "distill.contrastive.*tau": 5e-3,
        }
    )
    (log,) = (tmp_path / "3/experiments/tiny").glob("*.log")
    assert "lr:(student 5.000e-04, heads 1.500e-03, body.* 5.000e-05," in log.read_text()


def test_other_parts_are_another_experiment_and_go_on_by_name_where_that_is_allowed(partly, tmp_path):
    options = without_teacher(partly)
    run(options, tmp_path, 2)
    other = changed(options, train__freeze=["body.1"], train__param_groups=[{"params": "conv_first", "lr": 1e-5}])
    with pytest.raises(OptionsError, match=r"train\.freeze: \['conv_first', 'body\.0\.\*'\] -> \['body\.1'\]"):
        run(other, tmp_path, 3, auto_resume=True)
    before, after = run(other, tmp_path, 3, auto_resume=True, allow_config_change=True)[1:]
    assert {"conv_first.weight", "body.0"} <= moved(before, after) and "body.1" not in moved(before, after)
    steps = {}
    for group in after["state"]["optimizers"]["g"]["param_groups"]:
        for name, number in zip(group["names"], group["params"], strict=True):
            steps[name] = int(after["state"]["optimizers"]["g"]["state"][number]["step"])
    assert steps["conv_first.weight"] == steps["body.0.conv1.weight"] == 1
    assert steps["conv_last.weight"] == 3
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    assert "the optimizer has no moments for" in log.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["*"]}, r"train\.freeze: \* freeze all \d+ parameters of network_g"),
        ({"freeze": ["conv_frist"]}, r"'conv_frist' matches no .* of network_g \(did you mean 'conv_first'\?\)"),
        ({"freeze_until": 3}, "train.freeze_until: means nothing without train.freeze"),
        (
            {"param_groups": [{"params": "body"}]},
            r"param_groups\[0\]: changes nothing: give it an lr or a weight_decay",
        ),
        ({"param_groups": [{"params": ["body", "distill.x"], "lr": 1}]}, "give each a group of its own"),
        ({"param_groups": [{"params": "body", "lr": 1}] * 2}, r"is that of param_groups\[0\], too; remove one"),
        ({"param_groups": [{"params": "body", "lr": 0}]}, r"param_groups\[0\]\.lr: input should be greater than 0"),
        ({"param_groups": [{"params": "bodi.0", "lr": 1}]}, r"'bodi.0' matches no .*\(did you mean 'body.0'\?\)"),
        ({"param_groups": [{"params": "distill.response", "lr": 1}]}, "of the terms' heads that are trained"),
    ],
)
def test_slips_are_one_line_and_nothing_is_written(mcadkd, tmp_path, changes, message):
    options = changed(mcadkd, **{f"train__{key}": value for key, value in changes.items()})
    with pytest.raises(OptionsError, match=message):
        train_pipeline(options, root=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("**/models"))

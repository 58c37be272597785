"""Every value of a training state is held against what the run needs before any of it is used."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import changed, checkpoint_of, differences, told
from torch import nn

from basicsr.config.load import load_options
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.process.distributed import distributed
from basicsr.engine.state_checks import StateMismatch, check_optimizer, check_scaler
from basicsr.engine.training_run import TrainingRun
from basicsr.files.atomic_files import sha256_of
from basicsr.optim.optimizers import OPTIMIZERS, build_optimizer
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def moments(state: dict[str, Any], label: str = "g") -> dict[str, Any]:
    return state["optimizers"][label]["state"][0]


def set_of(mapping: dict[str, Any], key: Any, value: Any) -> None:
    mapping[key] = value


# What is done to (networks, state) of a checkpoint, and what the refusal says. Moments of another shape are larger than
# their parameter.
TENSORS: dict[str, tuple[Change, str]] = {
    "larger moments": (
        lambda _, s: set_of(moments(s), "exp_avg", torch.zeros(9, 64, 64, 3)),
        r"parameter 0 has exp_avg of shape \(9, 64, 64, 3\), not \(8, 3, 3, 3\)",
    ),
    "moments of as many values in another shape": (
        lambda _, s: set_of(moments(s), "exp_avg_sq", torch.zeros(8, 27)),
        r"has exp_avg_sq of shape \(8, 27\), not",
    ),
    "moments of whole numbers": (
        lambda _, s: set_of(moments(s), "exp_avg", torch.zeros(8, 3, 3, 3, dtype=torch.int64)),
        "has exp_avg of type int64, not float32",
    ),
    "moments of half precision": (
        lambda _, s: set_of(moments(s), "exp_avg", torch.zeros(8, 3, 3, 3).half()),
        "has exp_avg of type float16",
    ),
    "moments that are nan": (
        lambda _, s: set_of(moments(s), "exp_avg", torch.full((8, 3, 3, 3), torch.nan)),
        "has exp_avg with values that are NaN or infinite",
    ),
    "negative squares": (
        lambda _, s: set_of(moments(s), "exp_avg_sq", torch.full((8, 3, 3, 3), -1.0)),
        "has exp_avg_sq with values below 0",
    ),
    "moments that are no tensors": (lambda _, s: set_of(moments(s), "exp_avg", 1.5), "has exp_avg of shape 1.5"),
    "a moment is missing": (
        lambda _, s: moments(s).pop("exp_avg"),
        "has the moments step, exp_avg_sq, not step, exp",
    ),
    "a moment of another optimizer": (
        lambda _, s: set_of(moments(s), "momentum_buffer", torch.zeros(8, 3, 3, 3)),
        "has the moments step, exp_avg, exp_avg_sq, momentum_buffer, not",
    ),
    "steps below 0": (lambda _, s: set_of(moments(s), "step", torch.tensor(-1.0)), "has step -1, allowed"),
    "more steps than iterations": (
        lambda _, s: set_of(moments(s), "step", torch.tensor(3.0)),
        "has step 3, .* 1 to 2",
    ),
    "moments before the first step": (
        lambda _, s: set_of(moments(s), "step", torch.tensor(0.0)),
        "step 0, .* from 1 to 2",
    ),
    "half a step": (lambda _, s: set_of(moments(s), "step", torch.tensor(0.5)), "has step 0.5"),
    "steps that are nan": (lambda _, s: set_of(moments(s), "step", torch.tensor(torch.nan)), "NaN or infinite"),
    "many step counts": (lambda _, s: set_of(moments(s), "step", torch.zeros(3)), r"has step of shape \(3,\)"),
    "steps in words": (lambda _, s: set_of(moments(s), "step", "two"), "has step 'two'"),
    "steps of the discriminator": (
        lambda _, s: set_of(moments(s, "d"), "step", torch.tensor(1e30)),
        "discriminator's optimizer: parameter 0 has step 1e[+]30",
    ),
    "moments of parameter 999": (
        lambda _, s: set_of(s["optimizers"]["g"]["state"], 999, moments(s)),
        "has moments of a parameter 999 that it does not list",
    ),
    "moments by name": (lambda _, s: set_of(s["optimizers"]["g"]["state"], "0", moments(s)), "a parameter '0' that"),
    "moments in a list": (lambda _, s: set_of(s["optimizers"]["g"], "state", []), "has moments that are a list"),
    "a group more": (
        lambda _, s: s["optimizers"]["g"]["param_groups"].append({"params": [98, 99]}),
        "has 3 parameter groups, not 2",
    ),
    "a parameter fewer": (
        lambda _, s: s["optimizers"]["g"]["param_groups"][0]["params"].pop(),
        r"has \d+ parameters in 'student', not \d+",
    ),
    "a parameter twice": (
        lambda _, s: set_of(s["optimizers"]["g"]["param_groups"][0]["params"], 1, 0),
        "lists a parameter twice",
    ),
    "groups exchanged": (
        lambda _, s: set_of(s["optimizers"]["g"]["param_groups"][0], "name", "heads"),
        "has the group 'heads' in the place of 'student'",
    ),
    "parameters without numbers": (
        lambda _, s: set_of(s["optimizers"]["g"]["param_groups"][0], "params", "all"),
        "has a group whose parameters are 'all'",
    ),
    "groups that are no mappings": (
        lambda _, s: set_of(s["optimizers"]["g"], "param_groups", [1, 2]),
        "has parameter groups that are a list",
    ),
    "no optimizer": (lambda _, s: s["optimizers"].pop("g"), "it has no optimizers: g"),
    "an optimizer that is text": (lambda _, s: set_of(s["optimizers"], "g", "Adam"), "its optimizer is 'Adam'"),
    "optimizers in a list": (lambda _, s: set_of(s, "optimizers", []), "it has no optimizers: g"),
    "student of another shape": (
        lambda n, _: set_of(n["g"]["params"], "conv_first.weight", torch.zeros(64, 3, 3, 3)),
        r"student's weights have 'conv_first.weight' of shape \(64, 3, 3, 3\), not \(8, 3, 3, 3\)",
    ),
    "student with a nan": (
        lambda n, _: set_of(n["g"]["params"], "conv_first.weight", torch.full((8, 3, 3, 3), torch.nan)),
        "student's weights: weight 'conv_first.weight' has 216 of 216 values that are NaN",
    ),
    "student of whole numbers": (
        lambda n, _: set_of(n["g"]["params"], "conv_first.weight", torch.ones(8, 3, 3, 3, dtype=torch.int32)),
        "student's weights: weight 'conv_first.weight' is int32",
    ),
    "student of half precision": (
        lambda n, _: set_of(n["g"]["params"], "conv_first.weight", torch.ones(8, 3, 3, 3).half()),
        "student's weights have 'conv_first.weight' of type float16, not float32",
    ),
    "student without a weight": (lambda n, _: n["g"]["params"].pop("conv_first.bias"), "have no 'conv_first.bias'"),
    "student with a weight more": (
        lambda n, _: set_of(n["g"]["params"], "more", torch.zeros(1)),
        "student's weights have 'more'",
    ),
    "student in a list": (lambda n, _: set_of(n["g"], "params", [1]), "student's weights are a list"),
    "no averages": (lambda n, _: n["g"].pop("params_ema"), "it has no g: params_ema"),
    "averages of another network": (
        lambda n, _: n["g"]["params_ema"].pop("conv_first.bias"),
        "moving averages have no 'conv_first.bias'",
    ),
    "discriminator of another shape": (
        lambda n, _: set_of(n["d"]["params"], next(iter(n["d"]["params"])), torch.zeros(77, 77)),
        r"discriminator's weights have '\S+' of shape \(77, 77\)",
    ),
    "no discriminator": (lambda n, _: n.pop("d"), "it has no d;"),
    "no heads": (lambda _, s: set_of(s, "terms", {}), "heads' weights have no '"),
    "heads that are a number": (lambda _, s: set_of(s, "terms", 7), "heads' weights are 7"),
    "no scaler": (lambda _, s: set_of(s["scalers"], "g", None), "its loss scaler is None"),
}

RECORDS: dict[str, tuple[str, Any]] = {
    "iteration: negative": ("iteration", -5),
    "iteration: beyond all": ("iteration", 10**30),
    "iteration: of another file": ("iteration", 1),
    "iteration: a fraction": ("iteration", 2.0),
    "iteration: true": ("iteration", True),
    "iteration: text": ("iteration", "2"),
    "iteration: a tensor": ("iteration", torch.tensor([2, 2])),
    "best: a list": ("best", [1]),
    "best: a number": ("best", {"val": 30.0}),
    "best: no iteration": ("best", {"val": {"psnr": {"value": 30.0}}}),
    "best: of the future": ("best", {"val": {"psnr": {"value": 30.0, "iteration": 3}}}),
    "best: a tensor": ("best", {"val": {"psnr": {"value": torch.tensor(30.0), "iteration": 2}}}),
    "best: text": ("best", {"val": {"psnr": {"value": "high", "iteration": 2}}}),
    "validation_due: a number": ("validation_due", 1),
    "validation_due: a list": ("validation_due", [False]),
    "options: a mapping": ("options", {"name": "tiny"}),
    "options: a number": ("options", 5),
    "world_size: none": ("world_size", 0),
    "world_size: text": ("world_size", "2"),
    "world_size: beyond all": ("world_size", 10**30),
    "images: a list": ("images", [7]),
    "images: a number that is text": ("images", {"images": "3"}),
    "images: names that are a number": ("images", {"images": 3, "names": 7}),
    "images: a negative number": ("images", {"images": -7}),
    "images: names that are a list": ("images", {"images": 7, "names": ["a"]}),
    "files: a list": ("files", ["a"]),
    "files: numbers": ("files", {"path.pretrain_network_t": 5}),
    "skipped: text": ("skipped", "a.png"),
    "skipped: names": ("skipped", {"a.png": ["a.png: broken"]}),
}


@pytest.fixture
def begun(mcadkd, tmp_path) -> dict[str, Any]:
    """Options of a run that has saved 2.state."""
    options = changed(mcadkd, train__total_iter=2, val__val_freq=2, train__scheduler__milestones=[1])
    train_pipeline(options, root=tmp_path)
    return options


def test_tensors_that_do_not_fit_the_run_are_named_and_nothing_is_taken(begun, tmp_path):
    folder = CheckpointFolder(tmp_path / "experiments/tiny")
    good = folder.load(folder.states / "2.state")
    with distributed("none", 0, "gloo") as place:
        run = TrainingRun(load_options(begun, training=True, root=tmp_path), place, None)
    before = copy.deepcopy(run.network.state_dict())
    for name, (change, said) in TENSORS.items():
        networks, state = copy.deepcopy((good.networks, good.state))
        change(networks, state)
        with pytest.raises(CheckpointError, match=said) as caught:
            run.restore(Checkpoint(2, networks, state, good.path))
        assert str(caught.value).startswith(f"{good.path} does not fit the options: it"), name
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700, name
        assert differences(before, run.network.state_dict()) == [] and not run.optimizer.state, name
    good.state["optimizers"]["g"]["state"].pop(1)
    run.restore(good)
    assert run.remarks[-1].startswith("the optimizer has no moments for 1 of ")
    assert differences(dict(run.network.state_dict()), dict(good.networks["g"]["params"])) == []
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates == [group["lr"] for group in good.state["optimizers"]["g"]["param_groups"]] == [5e-4, 5e-4]


def rewritten(folder: CheckpointFolder, name: str, value: Any) -> None:
    """Puts a value into 2.state as another program would, with a manifest that is right about it."""
    path = folder.states / "2.state"
    content = torch.load(path, weights_only=True)
    torch.save({**content, name: value}, path)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["files"]["training_states/2.state"] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    path.with_suffix(".json").write_text(json.dumps(manifest))


def test_records_of_other_kinds_end_in_a_line_and_no_older_state_is_taken_instead(tmp_path):
    folder = CheckpointFolder(tmp_path / "run")
    for iteration in (1, 2):
        folder.save(iteration, {"g": {"params": {"w": torch.ones(2)}}}, {"best": {}})
    whole = (folder.states / "2.state").read_bytes(), (folder.states / "2.json").read_bytes()
    for case, (name, value) in RECORDS.items():
        rewritten(folder, name, value)
        for read in (lambda: folder.load(folder.states / "2.state"), folder.latest):
            with pytest.raises(CheckpointError, match=rf"2\.state cannot be used: its '{name}' is .*, not ") as caught:
                read()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, case
        (folder.states / "2.state").write_bytes(whole[0])
        (folder.states / "2.json").write_bytes(whole[1])
    assert folder.latest()[0].iteration == 2


@pytest.mark.long
def test_the_command_ends_with_code_4_and_a_line(begun, tmp_path):
    folder = CheckpointFolder(tmp_path / "experiments/tiny")
    rewritten(folder, "iteration", 10**30)
    code, errors = told(changed(begun, train__total_iter=4), tmp_path, auto_resume=True)
    assert code == 4 and "Traceback" not in errors
    assert "2.state cannot be used: its 'iteration' is a number beyond 2^53, not 2; put back" in errors.splitlines()[-1]


def test_a_state_beyond_the_runs_end_is_told(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=4, logger__save_checkpoint_freq=4, val__val_freq=4)
    train_pipeline(options, root=tmp_path)
    with pytest.raises(CheckpointError, match=r"4\.state was saved after iteration 4, train: total_iter is 3; r"):
        train_pipeline(changed(options, train__total_iter=3), root=tmp_path, auto_resume=True)
    assert train_pipeline(options, root=tmp_path, auto_resume=True).iteration == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_own_states_of_every_optimizer_fit_and_larger_ones_do_not(name):
    parameters = [nn.Parameter(torch.rand(4, 3)), nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(2))]
    settings = {"type": name, "lr": 1e-3} | ({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})
    settings |= {"amsgrad": True} if name == "AdamW" else {"centered": True} if name == "RMSprop" else {}
    optimizer = build_optimizer(settings, {"student": parameters[:1], "heads": parameters[1:]})
    for _ in range(2):
        for parameter in parameters[:2]:  # the third has had no gradient yet
            parameter.grad = torch.rand_like(parameter)
        optimizer.step()
    state = optimizer.state_dict()
    check_optimizer("optimizer", state, optimizer, 2)
    shaped = [key for key, value in state["state"][0].items() if torch.is_tensor(value) and value.dim()]
    assert shaped
    for key in shaped:
        spoilt = copy.deepcopy(state)
        spoilt["state"][0][key] = torch.zeros(40, 30)
        with pytest.raises(StateMismatch, match=rf"parameter 0 has {key} of shape \(40, 30\), not \(4, 3\)"):
            check_optimizer("optimizer", spoilt, optimizer, 2)


def test_scales_that_cannot_have_come_about():
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    good = scaler.state_dict()
    check_scaler("loss scaler", good, scaler)
    check_scaler("loss scaler", {}, torch.amp.GradScaler("cpu", enabled=False))
    for key, value in [
        *(("scale", value) for value in (0.0, -1.0, float("inf"), float("nan"), "65536", None, True, 2.0**128)),
        *(("growth_factor", 1.0), ("backoff_factor", 2.0), ("growth_interval", 0), ("_growth_tracker", -1)),
    ]:
        with pytest.raises(StateMismatch, match=f"its loss scaler has {key} "):
            check_scaler("loss scaler", {**good, key: value}, scaler)
    with pytest.raises(StateMismatch, match="its loss scaler has scale None"):
        check_scaler("loss scaler", {}, scaler)


def test_a_state_as_the_first_release_saved_it_goes_on(mcadkd, tmp_path):
    """Without what later versions added."""
    options = changed(mcadkd, train__total_iter=4, logger__save_checkpoint_freq=2, val__val_freq=4)
    train_pipeline(options, root=tmp_path / "whole")
    expected = checkpoint_of(tmp_path / "whole/experiments/tiny", 4)
    train_pipeline(changed(options, train__total_iter=2), root=tmp_path)
    folder = CheckpointFolder(tmp_path / "experiments/tiny")
    old = folder.load(folder.states / "2.state")
    state = {key: value for key, value in old.state.items() if key not in ("format", "iteration", "skipped")}
    folder.save(2, old.networks, state)
    train_pipeline(options, root=tmp_path, auto_resume=True)
    ours = checkpoint_of(Path(tmp_path / "experiments/tiny"), 4)
    assert differences(expected["state"]["optimizers"], ours["state"]["optimizers"]) == []

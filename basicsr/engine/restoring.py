"""Puts a run into the state of a checkpoint: all of it is held against the run first, then taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from basicsr.engine.checkpoint import Checkpoint
from basicsr.engine.precision_choice import kept_precision
from basicsr.engine.state_checks import Misfit, check_groups, check_optimizer, check_scaler, check_tensors
from basicsr.optim.optimizers import changed_decay, regrouped, without_moments
from basicsr.utils.errors import CheckpointError

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun


def restore(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Gives a run that was just built the weights, moments, scales and records of a checkpoint.

    Raises:
        CheckpointError: a value does not fit the run; nothing was taken.
    """
    try:
        _check(run, checkpoint)
        _take(run, checkpoint)
    except (Misfit, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the options: {' '.join(str(error).split())[:300]};"
            " resume with the options it was saved with, or start a run of another name"
        ) from error


def _check(run: TrainingRun, checkpoint: Checkpoint) -> None:
    networks, state, iteration = checkpoint.networks, checkpoint.state, checkpoint.iteration
    ignored = run.options.path.ignore_resume_networks
    if "network_g" not in ignored:
        check_tensors("student's weights", _part(networks, "g", "params"), run.network)
        if run.ema is not None:
            check_tensors("moving averages", _part(networks, "g", "params_ema"), run.ema.network)
    for name in ("best", "validation_due"):
        _part(state, name)
    check_tensors("heads' weights", _part(state, "terms"), run.terms)
    check_optimizer("optimizer", _students_optimizer(run, state), run.optimizer, iteration)
    _check_scaler(state, "loss scaler", "g", run.scaler)
    if (adversary := run.adversary) is not None:
        if "network_d" not in ignored:
            check_tensors("discriminator's weights", _part(networks, "d", "params"), adversary.discriminator)
        _check_scaler(state, "discriminator's loss scaler", "d", adversary.scaler)
        if adversary.optimizer is not None:
            name = "discriminator's optimizer"
            check_optimizer(name, _part(state, "optimizers", "d"), adversary.optimizer, iteration)


def _check_scaler(state: dict[str, Any], name: str, key: str, scaler: torch.amp.GradScaler) -> None:
    given, kept = _part(state, "scalers", key), kept_precision(state)
    if given != {} or kept is None or kept["amp"] == "fp16":
        check_scaler(name, given, scaler)


def _load_scaler(scaler: torch.amp.GradScaler, saved: dict[str, Any]) -> None:
    """A run that goes on under fp16 from another precision, which has no scales, begins with new ones."""
    if saved:
        scaler.load_state_dict(saved)


def _take(run: TrainingRun, checkpoint: Checkpoint) -> None:
    networks, state = checkpoint.networks, checkpoint.state
    ignored = run.options.path.ignore_resume_networks
    if "network_g" not in ignored:
        run.network.load_state_dict(networks["g"]["params"])
        if run.ema is not None:
            run.ema.network.load_state_dict(networks["g"]["params_ema"])
    run.terms.load_state_dict(state["terms"])
    saved = _students_optimizer(run, state)
    run.remarks += changed_decay(saved, run.optimizer) + without_moments("optimizer", saved, run.optimizer)
    _load_optimizer(run.optimizer, saved)
    _load_scaler(run.scaler, state["scalers"]["g"])
    if (adversary := run.adversary) is not None:
        if "network_d" not in ignored:
            adversary.discriminator.load_state_dict(networks["d"]["params"])
        _load_scaler(adversary.scaler, state["scalers"]["d"])
        if adversary.optimizer is not None:
            saved = state["optimizers"]["d"]
            run.remarks += without_moments("discriminator's optimizer", saved, adversary.optimizer)
            _load_optimizer(adversary.optimizer, saved)
    run.set_learning_rates(checkpoint.iteration)  # it may be saved again before the next iteration sets them
    run.best = state["best"]
    run.validation_due = state["validation_due"]


def _students_optimizer(run: TrainingRun, state: dict[str, Any]) -> dict[str, Any]:
    saved = check_groups("optimizer", _part(state, "optimizers", "g"))
    return regrouped(saved, [*run.network.parameters(), *run.terms.parameters()], run.optimizer)


def _part(content: Any, *names: str) -> Any:
    for depth, name in enumerate(names, start=1):
        if not isinstance(content, Mapping) or name not in content:
            raise Misfit(f"it has no {': '.join(names[:depth])}")
        content = content[name]
    return content


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores moments and steps; rates, betas and the like stay as the present options have them.

    The settings are put in before loading, since they say where steps have to lie. Moments are laid out in memory as
    the weights are now, which fused kernels take for granted.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **kept} for saved, kept in zip(state["param_groups"], settings, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

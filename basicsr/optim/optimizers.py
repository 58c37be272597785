"""Optimizers, named in the options as in torch.optim, their state in checkpoints, and the moving average of weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from basicsr.optim.parts import TERMS
from basicsr.utils.errors import OptionsError
from basicsr.utils.logger import WarningRemark
from basicsr.utils.ranges import BelowOne, Probability, WeightDecay
from basicsr.utils.registry import unknown_name
from basicsr.utils.text import nearest


def _eager(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The optimizer without wrappers that hide it from torch.compile: their first call takes a second of imports."""
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    content = {name: inspect.unwrap(getattr(optimizer, name)) for name in methods}
    # `differentiable` is always False (ARGUMENTS), so that `no_grad` is all that a step needs.
    content["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), content)


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: _eager(getattr(torch.optim, name))
    for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Rprop")
}

# torch's signatures have types but no ranges, and its constructors take NaN, infinity and rates of any size.
ARGUMENTS: dict[str, Any] = {
    "lr": Annotated[float, Gt(0), Le(100)],
    "betas": tuple[BelowOne, BelowOne],
    "eps": Annotated[float, Ge(0), Le(10)],
    "weight_decay": WeightDecay,
    "momentum": BelowOne,
    "dampening": Probability,
    "momentum_decay": Probability,
    "lambd": Probability,
    "alpha": BelowOne,
    "t0": Annotated[float, Ge(0), Le(1e9)],
    "etas": tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Ge(1), Le(100)]],
    "step_sizes": tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1e6)]],
    **dict.fromkeys(("maximize", "capturable", "differentiable"), Literal[False]),  # of other training loops
    **dict.fromkeys(("amsgrad", "nesterov", "centered", "decoupled_weight_decay"), bool),
    **dict.fromkeys(("foreach", "fused"), bool | None),
}
"""Types and ranges of the optimizers' arguments, by name."""

HEADS = "heads"
"""The parameter group of what is trained beside the student: projection heads, temperatures, regressors, encoders."""


def build_optimizer(
    options: Mapping[str, Any],
    groups: Mapping[str, Iterable[nn.Parameter]],
    weight_decay_heads: float = 0.0,
    lr_heads: float | None = None,
    settings: Mapping[str, Mapping[str, float]] = {},
) -> torch.optim.Optimizer:
    """Builds the optimizer that `options['type']` names, with one parameter group for each non-empty entry of `groups`.

    Frozen parameters are left out. Each group carries its name and, as `initial_lr`, the base of its schedule. The
    group `HEADS` has `weight_decay_heads` in place of the `weight_decay` in `options`: that regularises the network
    that is kept, while it would pull a temperature, whose logarithm is learned, towards 1. `lr_heads` is
    likewise their rate. `settings` are rates and decays of single groups, by name, in place of all these.

    Raises OptionsError for an unknown type or key, or a weight decay for an optimizer that has none.
    """
    arguments = dict(options)
    name = arguments.pop("type", "")
    if name not in OPTIMIZERS:
        raise OptionsError(unknown_name("optimizer", name, list(OPTIMIZERS)).message)
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)[1:]
    for key in arguments:
        if key not in known:
            raise OptionsError(f"optimizer {name}: unknown key {key}{nearest(key, known)}; allowed: {', '.join(known)}")
    if weight_decay_heads and "weight_decay" not in known:
        raise OptionsError(
            f"train.weight_decay_heads is {weight_decay_heads}, but {name} has no weight decay; remove it"
        )
    for group, own in settings.items():
        if own.get("weight_decay") and "weight_decay" not in known:
            raise OptionsError(f"train.param_groups: {group} has a weight_decay, but {name} has none; remove it")
    entries: list[dict[str, Any]] = []
    for group, parameters in groups.items():
        if trained := [parameter for parameter in parameters if parameter.requires_grad]:
            entries.append({"params": trained, "name": group})
            if group == HEADS or group.startswith(TERMS):
                entries[-1] |= {"weight_decay": weight_decay_heads} if "weight_decay" in known else {}
                entries[-1] |= {"lr": lr_heads} if lr_heads is not None else {}
            entries[-1] |= {key: value for key, value in settings.get(group, {}).items() if key in known}
    devices = {parameter.device.type for entry in entries for parameter in entry["params"]}
    if "fused" in known and not {"fused", "foreach"} & set(arguments) and devices <= {"cpu", "cuda"}:
        arguments["fused"] = True  # one kernel for all weights
    optimizer = OPTIMIZERS[name](entries, **arguments)
    for entry in optimizer.param_groups:
        entry["initial_lr"] = entry["lr"]
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores moments and steps; rates, betas and the like stay as the present options have them."""
    # The settings are put in before loading, since they say where steps have to lie.
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **kept} for saved, kept in zip(state["param_groups"], settings, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Laid out in memory as the weights are now, which fused kernels take for granted.
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def regrouped(state: dict[str, Any], in_order: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state in the present groups, each parameter by its name, as groups list them under `names`.

    Parameters that the state does not have get no moments; what is not trained any more is left out. `in_order` are
    the names in states that list none.
    """
    saved, present = state["param_groups"], optimizer.param_groups
    # Before heads had a weight decay of their own, a network trained in the student's place stood among them, in one
    # group `heads` of all terms' parameters; groups had no names of parameters then.
    numbers = [number for group in saved for number in group["params"]]
    named = all("names" in group for group in saved)
    names = [name for group in saved for name in group["names"]] if named else list(in_order)
    alike = [group.get("names") for group in saved] == [group["names"] for group in present]
    if len(names) != len(numbers) or alike or (len(saved) == len(present) and not named):
        return state
    number_of, free = dict(zip(names, numbers, strict=True)), count(max(numbers, default=-1) + 1)
    groups = [{**saved[-1], "name": group["name"], "names": group["names"], "params": []} for group in present]
    for group in groups:
        group["params"] = [number_of[name] if name in number_of else next(free) for name in group["names"]]
    kept = {number for group in groups for number in group["params"]}
    moments = {number: value for number, value in state["state"].items() if number in kept}
    return {"state": moments, "param_groups": groups}


def changed_decay(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """A warning where the heads were saved with another weight decay than they go on with."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return [
        WarningRemark(
            f"the heads' weight decay was {saved['weight_decay']}, and is {group['weight_decay']} from now on"
            " (train: weight_decay_heads)"
        )
        for saved, group in pairs
        if group["name"] == HEADS and saved.get("weight_decay", group["weight_decay"]) != group["weight_decay"]
    ]


def without_moments(name: str, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """A remark on parameters that go on without moments: they had no gradient yet, or lost them."""
    if isinstance(optimizer, torch.optim.SGD) and not any(group["momentum"] for group in optimizer.param_groups):
        return []
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    lacking = sum(number not in state["state"] for number in numbers)
    remark = f"the {name} has no moments for {lacking} of {len(numbers)} parameters: they had no gradient before"
    return [remark] if lacking else []


class Ema:
    """A copy of a network, equal at first, whose weights follow it: w' <- decay w' + (1 - decay) w, decay in [0, 1).

    Buffers (batch normalisation's statistics) are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step towards `network`."""
        averages = [average.detach() for average in self.network.parameters()]
        weights = [weight.detach() for weight in network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

"""Optimizers, named in the options as in torch.optim."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import nearest

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Rprop")
}


def build_optimizer(options: Mapping[str, Any], groups: Mapping[str, Iterable[nn.Parameter]]) -> torch.optim.Optimizer:
    """Builds the optimizer that `options['type']` names, with one parameter group for each non-empty entry of `groups`.

    Frozen parameters are left out. Each group carries its name and, as `initial_lr`, the base of its schedule.

    Raises:
        OptionsError: unknown type or keys.
    """
    name = options.get("type", "")
    if name not in OPTIMIZERS:
        raise OptionsError(
            f"no optimizer is called '{name}'{nearest(name, list(OPTIMIZERS))}; there are: {', '.join(OPTIMIZERS)}"
        )
    arguments = {key: value for key, value in options.items() if key != "type"}
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)
    for key in arguments:
        if key not in known[1:]:
            raise OptionsError(
                f"optimizer {name}: unknown key {key}{nearest(key, known)}; allowed: {', '.join(known[1:])}"
            )
    entries: list[dict[str, Any]] = []
    for group, parameters in groups.items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if trained:
            entries.append({"params": trained, "name": group})
    if not {"fused", "foreach", "differentiable", "capturable"} & set(arguments):
        arguments |= _fastest(known, entries)
    optimizer = OPTIMIZERS[name](entries, **arguments)
    for entry in optimizer.param_groups:
        entry["initial_lr"] = entry["lr"]
    return optimizer


def _fastest(known: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """One kernel for all weights, where the optimizer has it and the weights are where it works."""
    parameters = [parameter for entry in entries for parameter in entry["params"]]
    devices = {parameter.device.type for parameter in parameters}
    return {"fused": True} if "fused" in known and devices <= {"cpu", "cuda"} else {}

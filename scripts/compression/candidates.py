"""The students that there are to choose from, what they cost, and which of them lie on the budget's edge."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from basicsr.archs import build_network
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import ARCH_REGISTRY, find_problems, thaw
from compression.options import Budget, FamilyOptions

MOST = 400
COMPARED = "compared"
"""The family of `compress: compare`."""


@dataclass(frozen=True)
class Candidate:
    """A student.

    Attributes:
        name: for files: the family's name and the values of its ranges.
        family: its family's name.
        label: for people, such as 'compact, num_feat 16, num_conv 4'.
        block: options from which it is built.
        lr_factor: of the learning rates of its trainings.
    """

    name: str
    family: str
    label: str
    block: Mapping[str, Any]
    lr_factor: float = 1.0


@dataclass(frozen=True)
class Costs:
    """What a student costs as it is shipped: its parameters, and its multiply-adds of one image."""

    parameters: int
    multiply_adds: int


def candidates_of(families: Mapping[str, FamilyOptions], scale: int, where: str = "families") -> list[Candidate]:
    """All combinations of all ranges, each once, in the order of the file.

    Raises:
        OptionsError: an argument is unknown or out of its range, a network is for another scale, or there are too many.
    """
    found: dict[str, Candidate] = {}
    seen: set[str] = set()
    for family, options in families.items():
        key = f"{where}.{family}" if where == "families" else where
        for block, values in _blocks(options, scale, key):
            text = json.dumps(block, sort_keys=True, default=str)
            if text in seen:
                continue
            seen.add(text)
            name = _unique("_".join([family, *map(_word, values.values())]), found)
            label = ", ".join([family, *(f"{name} {value}" for name, value in values.items())])
            found[name] = Candidate(name, family, label, block, options.lr_factor)
            if len(found) > MOST:
                raise OptionsError(f"compress: {where}: more than {MOST} candidates; give fewer values")
    return list(found.values())


def _blocks(options: FamilyOptions, scale: int, key: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each combination as a network's block, and its values of the ranges."""
    fixed, ranges = thaw(options.network), thaw(options.ranges)
    factory = ARCH_REGISTRY.get(fixed["type"])
    if both := [name for name in ranges if name in fixed]:
        raise OptionsError(f"compress: {key}: {both[0]} stands in network and in ranges; keep one")
    if empty := [name for name, values in ranges.items() if not values]:
        raise OptionsError(f"compress: {key}.ranges.{empty[0]}: give at least one value")
    parameters = inspect.signature(factory).parameters
    for name in ("upscale", "scale"):
        if name in parameters and fixed.setdefault(name, scale) != scale:
            raise OptionsError(f"compress: {key}.network.{name}: is {fixed[name]}, the options' scale is {scale}")
    made = []
    for values in itertools.product(*ranges.values()):
        chosen = dict(zip(ranges, values, strict=True))
        arguments = {name: value for name, value in {**fixed, **chosen}.items() if name != "type"}
        if problems := find_problems(factory, arguments, {}):
            problem = problems[0]
            part = "ranges" if problem.key and problem.key[0] in ranges else "network"
            raise OptionsError(
                f"compress: {key}.{part}{''.join(f'.{entry}' for entry in problem.key)}: {problem.message}"
            )
        made.append(({"type": fixed["type"], **arguments}, chosen))
    return made


def _word(value: Any) -> str:
    """A value as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9+-]+", "-", str(value)).strip("-") or "none"


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    name = name[:100]
    if name not in taken:
        return name
    return next(other for number in itertools.count(2) if (other := f"{name}_{number}") not in taken)


def on_the_edge(
    costs: Mapping[str, float], families: Mapping[str, str], budget: Budget, most: int, labels: Mapping[str, str]
) -> tuple[list[str], str]:
    """The candidates to train, nearest to the budget first within their families, which take turns; and a remark.

    These cost between (1 - tolerance) budgets and one. Where there are none, each family's most expensive one within
    the budget is taken.

    Args:
        costs: by the candidate's name, in the budget's unit.
        families: of the candidates.
        budget: what they may cost.
        most: how many are wanted.
        labels: of the candidates, for the message.

    Raises:
        OptionsError: none is within the budget; it says which costs least.
    """
    within = {name: cost for name, cost in costs.items() if cost <= budget.limit}
    if not within:
        least = min(costs, key=lambda name: costs[name])
        word = "fastest" if budget.kind == "ms" else "smallest"
        raise OptionsError(
            f"compress: budget: {budget.kind}: {budget.limit:g}: no candidate is within it; the {word} that there is,"
            f" {labels[least]}, takes {shown_cost(budget.kind, costs[least])}: raise the budget, or add smaller ones to"
            " compress: families"
        )
    edge = {name: cost for name, cost in within.items() if cost >= (1 - budget.tolerance) * budget.limit}
    remark = ""
    if not edge:
        largest: dict[str, str] = {}
        for name in sorted(within, key=lambda name: within[name]):
            largest[families[name]] = name
        edge = {name: within[name] for name in largest.values()}
        remark = (
            f"no candidate costs more than {100 * (1 - budget.tolerance):.0f} % of the budget; the largest of each"
            " family within it is taken"
        )
    queues: dict[str, list[str]] = {}
    for name in sorted(edge, key=lambda name: -edge[name]):
        queues.setdefault(families[name], []).append(name)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
    chosen = [name for name in turns if name is not None][:most]
    if len(edge) > most:
        remark = f"{len(edge)} candidates lie on the budget's edge; the {most} nearest, family by family, are tried"
    return chosen, remark


def shown_cost(kind: str, cost: float) -> str:
    """A cost with its unit."""
    if kind == "ms":
        return f"{cost:.3g} ms"
    return f"{cost:,.0f} {kind.replace('_', '-')}"


def costs_of(candidate: Candidate, size: tuple[int, int]) -> Costs:
    """Counts a student as it is shipped, on an image of this height and width, without computing anything."""
    network = build_network(candidate.block).eval()
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    return Costs(count_parameters(network), count_multiply_adds(network, (channels, *size)))

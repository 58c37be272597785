"""What networks are made of, what targets cannot take of that, and so which network can be written for which target.

A network states its traits (`basicsr.archs.traits`), a target its limits; nothing is tried to know the verdict.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import nn

from basicsr.archs.luma import LumaNetwork
from basicsr.archs.traits import Trait
from basicsr.export.tracing import largest_window
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.weights.spandrel_networks import SpandrelNetwork

Answer = Literal["yes", "with --size", "no"]


@dataclass(frozen=True)
class Limit:
    """Why a target does not take a trait, as the end of a sentence 'NETWORK has TRAIT: ...'.

    `with_size`: it takes it in a file for images of one size.
    """

    reason: str
    with_size: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a network can be written for a target: always, for one size only, or not; and why."""

    answer: Answer
    trait: Trait | None = None
    reason: str = ""


class Target(Protocol):
    """What is asked of a target here; an `ExportFormat` is one."""

    @property
    def name(self) -> str:
        """Of the target."""

    @property
    def runtime(self) -> str:
        """What runs its files; '' of a format that is no target."""

    @property
    def precisions(self) -> Sequence[str]:
        """In which its files can be written."""

    @property
    def limits(self) -> Mapping[Trait, Limit]:
        """What it does not take."""

    @property
    def one_size(self) -> str:
        """Why its files are for one size only, or ''."""


def traits_of(network: nn.Module) -> frozenset[Trait]:
    """The traits of a network: its class's own, or of spandrel's what its descriptor and its parts show."""
    if isinstance(network, LumaNetwork):
        enlarged = traits_of(network.enlarge)
        return traits_of(network.network) | enlarged
    if not isinstance(network, SpandrelNetwork):
        return _of_class(type(network))
    shown: set[Trait] = set()
    if network.sizes.multiple_of > 1:
        shown.add("sides extended to multiples")
    if largest_window(network.model) > 1:
        shown.add("attention in windows")
    return frozenset(shown)


def _of_class(kind: type) -> frozenset[Trait]:
    return getattr(kind, "traits", frozenset())


def verdict(traits: Iterable[Trait], target: Target) -> Verdict:
    """What follows for a network of these traits: the strictest of the target's limits."""
    limits = [(trait, target.limits[trait]) for trait in get_args(Trait) if trait in set(traits) & set(target.limits)]
    for trait, limit in sorted(limits, key=lambda found: found[1].with_size):
        return Verdict("with --size" if limit.with_size else "no", trait, limit.reason)
    return Verdict("with --size", None, target.one_size) if target.one_size else Verdict("yes")


def refusal(
    architecture: str,
    network: nn.Module,
    target: Target,
    size: tuple[int, int] | None,
    others: Sequence[Target],
) -> str | None:
    """One line: what the target cannot take, why, and what to do instead; None where it takes it.

    `others` are targets of which those are named that take the network.
    """
    traits = traits_of(network)
    found = verdict(traits, target)
    if found.answer == "yes" or (found.answer == "with --size" and size is not None):
        return None
    what = f"{architecture} has {found.trait}: {found.reason}" if found.trait else found.reason
    if found.answer == "with --size":
        return f"{what}; give --size H W, for a file of one size"
    able = [other.name for other in others if other.runtime and verdict(traits, other).answer != "no"]
    return f"{what}; take {_either(able)}" if able else f"{what}; no target takes it"


def _either(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1]) if len(names) > 1 else names)


def image_networks() -> Iterator[tuple[str, Any]]:
    """All registered networks that map images to images, with their names."""
    for name, kind in ARCH_REGISTRY:
        if hasattr(kind, "from_published") or "upscale" in inspect.signature(kind).parameters:
            yield name.removesuffix("_basicsr"), kind


def listing(targets: Sequence[Target]) -> str:
    """`table` in columns, and below it the `reasons`."""
    rows = table(targets)
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *reasons(targets)])


def table(targets: Sequence[Target]) -> list[tuple[str, ...]]:
    """Rows of text: a header with the targets and their precisions, then for each registered network the answers."""
    rows = [("network", *(f"{target.name} ({', '.join(target.precisions)})" for target in targets))]
    return rows + [
        (name, *(verdict(_of_class(kind), target).answer for target in targets)) for name, kind in image_networks()
    ]


def reasons(targets: Sequence[Target]) -> list[str]:
    """Sentences for what `table` denies: of each target and reason once, with the traits and their networks."""
    lines = []
    for target in targets:
        found: dict[tuple[Answer, str], dict[str, list[str]]] = {}
        for name, kind in image_networks():
            each = verdict(_of_class(kind), target)
            if each.answer != "yes":
                causes = found.setdefault((each.answer, each.reason), {})
                causes.setdefault(each.trait or "any network", []).append(name)
        for (answer, reason), causes in found.items():
            listed = "; ".join(f"{trait} ({', '.join(names)})" for trait, names in causes.items())
            lines.append(f"{target.name}, {answer}: {reason}: {listed}")
    return lines

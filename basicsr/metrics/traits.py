"""What the evaluator, the training loop and the tables must know of a metric before they call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from basicsr.utils.registry import METRIC_REGISTRY

if TYPE_CHECKING:
    import torch

Direction = Literal["higher", "lower"]
Metric = TypeVar("Metric", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traits:
    """Properties of a metric with its arguments.

    Attributes:
        better: whether a higher or a lower figure is the better one.
        needs_reference: whether it compares with the HR image.
    """

    better: Direction = "higher"
    needs_reference: bool = True


def described(
    traits: Callable[[Mapping[str, Any]], Traits], prepare: Callable[[Mapping[str, Any], torch.device], None]
) -> Callable[[Metric], Metric]:
    """Decorates a metric that has more to say of itself than its signature does.

    Args:
        traits: what it is, from its options (the block without `type` and `better`).
        prepare: makes ready, on the device of the evaluation, what the metric needs, or raises a `UserError`.
    """

    def decorate(metric: Metric) -> Metric:
        for name, value in (("traits", traits), ("prepare", prepare)):
            setattr(metric, name, value)
        return metric

    return decorate


def traits_of(block: Mapping[str, Any]) -> Traits:
    """The traits of the metric that an options block names.

    A metric that does not tell itself is better higher, and needs the HR image where it has a parameter `img2`.

    Raises:
        OptionsError: `type` is unknown.
        MachineError: the metric belongs to a package that is not installed.
    """
    metric = METRIC_REGISTRY.get(block["type"])
    told: Callable[[Mapping[str, Any]], Traits] | None = getattr(metric, "traits", None)
    if told is not None:
        return told(arguments_of(block))
    return Traits(needs_reference="img2" in inspect.signature(metric).parameters)


def better_direction(block: Mapping[str, Any]) -> Direction:
    """Whether a higher or a lower figure is the better one: the block's own `better`, else what the metric says.

    Raises:
        OptionsError: `type` is unknown.
        MachineError: the metric belongs to a package that is not installed.
    """
    written: Direction | None = block.get("better")
    return written or traits_of(block).better


def prepare_metrics(blocks: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Loads what the metrics need, so that what is missing shows before a run begins rather than in its midst.

    Raises:
        OptionsError: a metric cannot be had as the options ask for it.
        MachineError: a package is not installed, or weights cannot be downloaded.
    """
    for block in blocks.values():
        prepare = getattr(METRIC_REGISTRY.get(block["type"]), "prepare", None)
        if prepare is not None:
            prepare(arguments_of(block), device)


def takes_tensors(block: Mapping[str, Any]) -> bool:
    """Whether the metric wants tensors on the device: its parameter `img` is annotated `torch.Tensor`."""
    parameter = inspect.signature(METRIC_REGISTRY.get(block["type"])).parameters.get("img")
    annotation = parameter.annotation if parameter is not None else ""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] == "Tensor"


def arguments_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """A metric's own options: without what the framework reads."""
    return {key: value for key, value in block.items() if key not in ("type", "better")}

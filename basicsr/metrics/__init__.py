"""Metrics, functions of an image and its ground truth; and what is known of them before they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METRIC_REGISTRY, bind_arguments

if TYPE_CHECKING:
    import torch

Direction = Literal["higher", "lower"]
Metric = TypeVar("Metric", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traits:
    """Which direction of a metric is better, whether it compares with the HR image, and takes gray or RGB only."""

    better: Direction = "higher"
    needs_reference: bool = True
    only_colours: bool = False


def described(
    traits: Callable[[Mapping[str, Any]], Traits], prepare: Callable[[Mapping[str, Any], torch.device], None]
) -> Callable[[Metric], Metric]:
    """Decorates a metric with `traits`, made of its options, and `prepare`, which loads what it needs on a device."""

    def decorate(metric: Metric) -> Metric:
        vars(metric).update(traits=traits, prepare=prepare)
        return metric

    return decorate


def traits_of(block: Mapping[str, Any]) -> Traits:
    """A metric's traits by its options; by default higher is better, and a parameter `img2` means an HR image.

    Raises OptionsError if `type` is unknown, MachineError if its package is not installed.
    """
    metric = METRIC_REGISTRY.get(block["type"])
    declared: Callable[[Mapping[str, Any]], Traits] | None = getattr(metric, "traits", None)
    if declared is not None:
        return declared(arguments_of(block))
    return Traits(needs_reference="img2" in inspect.signature(metric).parameters)


def better_direction(block: Mapping[str, Any]) -> Direction:
    """Whether higher or lower is better: the options' own `better`, else the metric's; raises as `traits_of`."""
    written: Direction | None = block.get("better")
    return written or traits_of(block).better


def prepare_metrics(blocks: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Loads what the metrics need before a run begins; raises OptionsError or MachineError."""
    for block in blocks.values():
        prepare = getattr(METRIC_REGISTRY.get(block["type"]), "prepare", None)
        if prepare is not None:
            prepare(arguments_of(block), device)


def bound_metric(block: Mapping[str, Any], images: Iterable[str]) -> Callable[[Mapping[str, Any]], Any]:
    """The metric as a function of its images `img` and, if they exist, `img2`; OptionsError if `block` does not fit."""
    if "type" not in block:
        raise OptionsError(f"a metric needs a 'type'; there are: {', '.join(METRIC_REGISTRY.names())}")
    metric, given = METRIC_REGISTRY.get(block["type"]), arguments_of(block)
    name = f"metric {block['type']}"
    taken = bind_arguments(metric, given, dict.fromkeys(images), name).keys() - given.keys()

    def measure(data: Mapping[str, Any]) -> Any:
        if not taken <= data.keys():
            bind_arguments(metric, given, data, name)  # raises if the metric needs the missing image
        return metric(**given, **{key: data[key] for key in taken & data.keys()})

    return measure


def takes_tensors(block: Mapping[str, Any]) -> bool:
    """Whether the metric takes tensors on the device: its parameter `img` is annotated `torch.Tensor`."""
    parameter = inspect.signature(METRIC_REGISTRY.get(block["type"])).parameters.get("img")
    annotation = parameter.annotation if parameter is not None else ""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] == "Tensor"


def arguments_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """A metric's own options, without those that the framework reads."""
    return {key: value for key, value in block.items() if key not in ("type", "better")}


def calculate_metric(data: Mapping[str, Any], opt: Mapping[str, Any]) -> Any:
    """Evaluates the metric `opt['type']` with its own arguments in `opt` on `data`, {'img': ..., 'img2': ...}.

    Images are uint8 (H, W, 3) in BGR, or for metrics of tensors (B, C, H, W) in RGB and [0, 1]. Raises OptionsError if
    `opt` does not fit the metric, DataError if it is not defined for these images.
    """
    return bound_metric(opt, data)(data)


def __getattr__(name: str) -> Any:
    """Finds any registered metric, such as `calculate_psnr`, as BasicSR's files import them."""
    try:
        if name.startswith("calculate_"):
            return METRIC_REGISTRY.get(name)
    except OptionsError as error:
        raise AttributeError(str(error)) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

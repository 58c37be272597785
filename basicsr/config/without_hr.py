"""LR images alone: which losses and metrics need the HR images that are not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from basicsr.config.component_blocks import constructor_of
from basicsr.config.schema import DatasetOptions, Options
from basicsr.config.yaml_reader import KeyPath
from basicsr.utils.registry import DATASET_REGISTRY, METHOD_REGISTRY, METRIC_REGISTRY, declared

_OF_LOSSES = {
    "pixel_opt": "compares with HR images",
    "perceptual_opt": "compares with HR images",
    "adversarial_opt": "shows HR images to the discriminator",
}


def lacks_hr(dataset: DatasetOptions) -> bool:
    """Whether a dataset has LR images alone, as its class declares (`without_gt`)."""
    return block_lacks_hr({"type": dataset.type, **dataset.arguments})


def block_lacks_hr(block: Mapping[str, Any]) -> bool:
    """`lacks_hr` of a dataset's block as it is written."""
    return bool(declared(constructor_of(DATASET_REGISTRY, block), "without_gt", block, False))


def find_uses_of_hr(options: Options) -> Iterator[tuple[KeyPath, str]]:
    """Losses that need the HR images that the training images lack.

    Where some sets of training images have HR images, others may lack them if anything can be learned from those.
    """
    trained = options.datasets_of("train")
    free = [key for key, dataset in trained.items() if lacks_hr(dataset)]
    if not free or options.train is None:
        return
    at: KeyPath = ("datasets", free[0])
    if options.model_type != "KDModel" and not options.train.distill:
        what = "has no HR images (dataroot_gt), and without a teacher nothing else is a target; give them"
        yield at, f"{what}, or take model_type KDModel (MCADKD) with network_t and resp_kd_opt or distill"
        return
    needs = _needs(options)
    if len(free) == len(trained):
        for key, need in needs.items():
            instead = "" if key[1] == "distill" else "; train.distill compares with the teacher's output"
            yield key, f"{need}, and datasets.{free[0]} has none (dataroot_gt); remove it, or give dataroot_gt{instead}"
        return
    others = [block for name, block in options.train.distill.items() if ("train", "distill", name) not in needs]
    if options.train.distill and not any(map(_counts, others)):
        what = "has no HR images (dataroot_gt), and every loss of weight needs them"
        yield at, f"{what}; give a loss between the outputs of student and teacher, such as resp_kd_opt"


def find_idle_metrics(options: Options) -> Iterator[tuple[KeyPath, str]]:
    """Sets without HR images of which there would be neither a figure nor an image, and no figure that decides."""
    val = options.val
    comparing = [name for name, block in val.metrics.items() if _compares(block)]
    for key, dataset in options.datasets_of("val", "test").items():
        if not lacks_hr(dataset) or not comparing:
            continue
        names = f"val.metrics {', '.join(comparing)} compare with HR images"
        if len(comparing) == len(val.metrics) and not options.saves_images:
            what = f"is required, as {names}; or set val: save_img: true, and images are saved"
            yield ("datasets", key, "dataroot_gt"), what
        elif val.best is not None and val.best.dataset == dataset.name and val.best.metric in comparing:
            yield (
                ("val", "best", "dataset"),
                f"has none (datasets.{key}.dataroot_gt), and {names}; name another",
            )


def _compares(block: Mapping[str, Any]) -> bool:
    """Whether a metric cannot do without an HR image."""
    metric = constructor_of(METRIC_REGISTRY, block)
    second = inspect.signature(metric).parameters.get("img2") if metric is not None else None
    return second is not None and second.default is inspect.Parameter.empty


def _needs(options: Options) -> dict[KeyPath, str]:
    """What each loss needs HR images for, by its key."""
    train = options.train
    found: dict[KeyPath, str] = {}
    for name, use in _OF_LOSSES.items():
        if getattr(train, name) is not None:
            found["train", name] = use
    for name, block in train.distill.items():
        method = constructor_of(METHOD_REGISTRY, block)
        if method is not None and (needs := declared(method, "gt_needs", block, "HR images")):
            found["train", "distill", name] = f"{block['type']} uses {needs}"
    return found


def _counts(block: Mapping[str, Any]) -> bool:
    """Whether a loss has a weight other than 0."""
    criterion = block["criterion"] if isinstance(block.get("criterion"), Mapping) else block
    return bool(criterion.get("loss_weight", 1) != 0)

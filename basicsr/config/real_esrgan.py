"""BasicSR's options of Real-ESRGAN, some of which stand at the top level, in today's places.

What says how LR images are made goes to the training set. `gt_usm` of RealESRNetModel sharpens the HR images that LR
images are made of, and the targets of the pixel loss. `queue_size` is accepted and not needed: the pool of pairs makes
up for what the images of a batch share there, and here every image has random numbers of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from basicsr.config.component_blocks import section_of
from basicsr.config.yaml_reader import KeyPath
from basicsr.utils.registry import DEGRADATION_REGISTRY, Problem

MODELS = ("RealESRNetModel", "RealESRGANModel")
_DATASETS = ("RealESRGANDataset", "RealESRGANPairedDataset")
_ELSEWHERE = "belongs to Real-ESRGAN's models and data sets; remove it, or take datasets.train.type: RealESRGANDataset"
_ONLY_HERE = ("gt_usm", "queue_size", "high_order_degradation")


def place_real_esrgan(data: dict[str, Any], written: dict[KeyPath, KeyPath]) -> Iterator[Problem]:
    """Moves the options to their places in `data`, notes in `written` where they stood, and yields what is wrong."""
    train = section_of(data, ("datasets", "train"))
    if data.get("model_type") not in MODELS and train.get("type") not in _DATASETS:
        yield from (Problem((key,), _ELSEWHERE) for key in _ONLY_HERE if data.pop(key, None) not in (None, False))
        return
    makes_lr = train.get("type") == "RealESRGANDataset"
    sharpened, high_order = data.pop("gt_usm", None), data.pop("high_order_degradation", None)
    data.pop("queue_size", None)
    moved = {key: data.pop(key) for key in [*_degradation_options(), "gt_size"] if data.get(key) is not None}
    if sharpened is not None:
        data.setdefault("l1_gt_usm", sharpened)
        written["l1_gt_usm",] = ("gt_usm",)
        if makes_lr and train.setdefault("sharpen_hr", sharpened) is sharpened:
            written["datasets", "train", "sharpen_hr"] = ("gt_usm",)
    if high_order is False and makes_lr:
        what = "trains on pairs: take datasets.train.type: RealESRGANPairedDataset, or remove it"
        yield Problem(("high_order_degradation",), what, False)
    for key, value in moved.items():
        if key != "gt_size" and not makes_lr:
            yield Problem((key,), "is for datasets.train.type: RealESRGANDataset, which makes LR images; remove it")
        elif train.setdefault(key, value) is value:
            written["datasets", "train", key] = (key,)
        elif train[key] != value:
            yield Problem((key,), f"contradicts datasets.train.{key}, {train[key]}; keep one", value)


def _degradation_options() -> list[str]:
    return [name for name in inspect.signature(DEGRADATION_REGISTRY.get("RealESRGAN")).parameters if name != "scale"]

"""Training with fake quantisation: which options go with it."""

from __future__ import annotations

from collections.abc import Iterator

from basicsr.config.component_blocks import constructor_of
from basicsr.config.schema import Options
from basicsr.config.yaml_reader import KeyPath
from basicsr.utils.registry import METHOD_REGISTRY

_OF_OTHER_VALUES = ("mean", "std")


def find_quantize_conflicts(options: Options) -> Iterator[tuple[KeyPath, str]]:
    """What `train: quantize` does not go with."""
    train = options.train
    if train is None or train.quantize is None:
        return
    for name, block in train.distill.items():
        if getattr(constructor_of(METHOD_REGISTRY, block), "replaces_student", False):
            what = (
                f"begins with the student's own weights, but train.distill.{name} cuts the student out of the teacher"
            )
            yield (
                ("train", "quantize"),
                f"{what}; remove one of the two, or quantise the student in a run after this one",
            )
    for key, dataset in options.datasets.items():
        for name in _OF_OTHER_VALUES:
            if dataset.arguments.get(name) is not None:
                what = "gives other values than those of images in [0, 1], which train.quantize rounds to 8 bits"
                yield ("datasets", key, name), f"{what}; remove it, or train.quantize"

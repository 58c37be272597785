"""Datasets, storage, augmentation, sampling and loading.

A dataset is one file `*_dataset.py` here with one class under `DATASET_REGISTRY`; the options name it by
`type`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basicsr.data.loading import build_dataset, build_eval_dataset, build_train_loader

__all__ = ["build_dataset", "build_eval_dataset", "build_train_loader"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("basicsr.data.loading"), name)

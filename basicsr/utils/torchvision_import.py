"""The one place that imports torchvision."""

from __future__ import annotations

import importlib
from typing import Any

from basicsr.utils.errors import MachineError

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []


def import_torchvision() -> Any:
    """Imports and returns torchvision, whichever build of it stands beside PyTorch.

    Beside another build of PyTorch (CUDA's torchvision beside the CPU's torch) torchvision cannot load its
    compiled operators, and then fails to import because it attaches to operators that nobody declared. We
    declare those; models and weights work without them, and `torchvision.ops.nms` stays unavailable.

    Raises:
        MachineError: torchvision is not installed, or does not fit this PyTorch.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise MachineError(f"torchvision does not import ({error}); install it: bash install.sh") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _libraries:
            raise _unfit(error) from error
    _declare_operators()
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        raise _unfit(error) from error


def _declare_operators() -> None:
    import torch

    # The declarations last as long as the object that made them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING_OPERATORS:
        library.define(schema)
    _libraries.append(library)


def _unfit(error: RuntimeError) -> MachineError:
    reason = str(error).splitlines()[0]
    return MachineError(f"torchvision does not fit the installed PyTorch ({reason}); reinstall both: bash install.sh")

"""Device and numerical precision of a run: autocast and loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, cast

import torch
from torch import nn

from basicsr.utils.errors import MachineError
from basicsr.utils.reparameterization import Mergeable, computes_as_usual, convolutions

Amp = Literal["bf16", "fp16", "none"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """The GPU if there is one, unless the CPU is wanted; raises MachineError where a GPU is wanted and missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: PyTorch sees no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Precision:
    """How networks are run: `device_type` is 'cpu' or 'cuda', `amp` the autocast type, 'none' for float32."""

    device_type: str
    amp: Amp = "none"

    @classmethod
    def of(cls, device: torch.device, amp: str) -> Precision:
        """The precision that options name; 'auto' must have been decided before."""
        assert amp in ("none", *_DTYPES), f"amp {amp} is to be settled before networks are built"
        return cls(device.type, cast(Amp, amp))

    def autocast(self) -> AbstractContextManager[Any]:
        """A new context in which convolutions and matrix products run in the chosen type."""
        if self.amp == "none":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPES[self.amp])

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler, which acts under fp16 only; bf16 has float32's range."""
        return torch.amp.GradScaler(self.device_type, enabled=self.amp == "fp16")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 if it is in a shorter format, else as it is: long sums need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which nothing runs in a shorter type; none, for a graph would have it, where nothing does anyway."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def keep_output_precise(network: nn.Module) -> None:
    """Makes the last convolution run in float32 under autocast: bf16 rounds images as much as 8 bits do."""
    whole = [module for _, module in convolutions(network) if computes_as_usual(module)]
    if whole:
        whole[-1].forward = MethodType(_forward_in_float32, whole[-1])  # type: ignore[method-assign]


def _forward_in_float32(self: nn.Conv2d | Mergeable, input: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) of any floating type to float32, or to float64 from float64."""
    with without_autocast(input.device.type):
        forward: Callable[[Any, torch.Tensor], torch.Tensor] = type(self).forward
        return forward(self, at_least_float32(input))

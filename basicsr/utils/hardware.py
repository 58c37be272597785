"""What the processor is, and for which number types it has instructions."""

from __future__ import annotations

import inspect
import platform
from functools import cache
from pathlib import Path
from typing import Literal

import torch

# As /proc/cpuinfo and PyTorch call them: of x86, then of Arm.
_INSTRUCTIONS = {
    "bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"},
}


def has_units(device: torch.device, kind: Literal["bf16", "fp16"]) -> bool:
    """Whether a device computes in `kind` by itself; PyTorch accepts autocast to it in any case, and emulates."""
    if device.type == "cuda":
        return kind == "fp16" or _gpu_has_bf16()
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supports = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)  # as of PyTorch 2.6 to 2.13
    return (supports is None or bool(supports())) and bool(processor()[1] & _INSTRUCTIONS[kind])


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name, and its features: as Linux tells them, else as far as Python and PyTorch know."""
    entries: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            entries[key.strip()] = value.strip()
    except OSError:
        pass
    features = {*entries.get("flags", "").split(), *entries.get("Features", "").split()}
    if (ask := getattr(torch.cpu, "get_capabilities", None)) is not None:
        features |= {name for name, there in ask().items() if there is True}
    return entries.get("model name") or platform.processor() or platform.machine() or "CPU", frozenset(features)


def _gpu_has_bf16() -> bool:
    known = inspect.signature(torch.cuda.is_bf16_supported).parameters
    return torch.cuda.is_bf16_supported(**({"including_emulation": False} if "including_emulation" in known else {}))

"""What the machine is and what it reaches at best."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.table import markdown, short

_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Peaks:
    """The most that was measured.

    Attributes:
        matmul: GFLOP/s by number type.
        convolution: likewise of 3x3 convolutions, 256 to 256 channels, channels last.
        copy: GB/s, read and written bytes together.
    """

    matmul: dict[str, float]
    convolution: dict[str, float]
    copy: float

    def best(self, kind: str) -> float:
        """GFLOP/s of whatever is fastest in this type."""
        return max(self.matmul[kind], self.convolution[kind])

    def table(self) -> str:
        """In Markdown."""
        lines = [(f"matrix product, {kind}", short(value), "GFLOP/s") for kind, value in self.matmul.items()]
        lines += [(f"convolution 3x3, {kind}", short(value), "GFLOP/s") for kind, value in self.convolution.items()]
        return markdown(("peak", "measured", "unit"), [*lines, ("copy", short(self.copy), "GB/s")], "lrl")


def measure_peaks(threads: int, *, device: str = "cpu", quick: bool = False) -> Peaks:
    """Measures matrix products, convolutions and copies for a second or two each; the best of many counts.

    On a GPU float32 means float32: cuDNN's convolutions use TF32 unless told otherwise.
    """
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)
    seconds = 0.02 if quick else 1.5
    large = device != "cpu"
    side, batch = (256, 1) if quick else (8192, 32) if large else (2048, 4)
    matmul, convolution = {}, {}
    for name, kind in _TYPES.items():
        a, b = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
        matmul[name] = 2e-9 * side**3 / _fastest(lambda a=a, b=b: a @ b, seconds, device)  # type: ignore[misc]
        image = torch.rand(batch, 256, 48, 48, device=device, dtype=kind).to(memory_format=torch.channels_last)
        kernel = torch.rand(256, 256, 3, 3, device=device, dtype=kind).to(memory_format=torch.channels_last)
        work = 2e-9 * image.numel() * 256 * 9
        with torch.no_grad():
            took = _fastest(lambda x=image, k=kernel: F.conv2d(x, k, padding=1), seconds, device)  # type: ignore[misc]
        convolution[name] = work / took
    source = torch.rand((1 << 20 if quick else 1 << 26) * (16 if large and not quick else 1), device=device)
    target = torch.empty_like(source)
    copy = 2e-9 * source.numel() * 4 / _fastest(lambda: target.copy_(source), seconds, device)
    torch.set_num_threads(before)
    torch.backends.cudnn.allow_tf32 = tf32
    return Peaks(matmul, convolution, copy)


def describe(threads: int) -> str:
    """Processor, cores, matrix instructions and PyTorch in a line."""
    name, flags = processor()
    has = [
        label
        for flag, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-bf16"), ("avx2", "AVX2"))
        if flag in flags
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = (
        f"{name}, {cores} cores, {threads} threads, {'with' if 'amx_bf16' in flags else 'without'} AMX"
        f" ({', '.join(has) or 'no flags known'}); PyTorch {torch.__version__}, Python {platform.python_version()}"
    )
    return line + (f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def processor() -> tuple[str, set[str]]:
    """Name and feature flags, where Linux tells them."""
    entries: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            entries[key.strip()] = value.strip()
    except OSError:
        pass
    return entries.get("model name") or platform.processor() or "unknown processor", set(
        entries.get("flags", "").split()
    )


def _fastest(work: Callable[[], object], seconds: float, device: str) -> float:
    """The least time that `work` took, repeated for so long."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    work()
    wait()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
    return best

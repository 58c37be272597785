"""The processor's name and number types, the load by other programs, and errors for lack of memory."""

from __future__ import annotations

import inspect
import os
import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from basicsr.utils.errors import MachineError

# As /proc/cpuinfo and PyTorch call them: of x86, then of Arm.
_INSTRUCTIONS = {
    "bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"},
}
# PyTorch says it in many ways: its CPU allocator (Linux, Windows), C++, oneDNN, cuBLAS and cuDNN, Apple's GPUs.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
    "ALLOC_FAILED",
)
_SPARE = 0.25  # cores that other programs may take of those we compute on
_SHORTEST = 0.15  # seconds, below which the kernel's counters, of hundredths, are too coarse
_BUSY = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal


def has_units(device: torch.device, kind: Literal["bf16", "fp16"]) -> bool:
    """Whether a device computes in `kind` by itself; PyTorch accepts autocast to it in any case, and emulates."""
    if device.type == "cuda":
        known = inspect.signature(torch.cuda.is_bf16_supported).parameters
        native = {"including_emulation": False} if "including_emulation" in known else {}
        return kind == "fp16" or torch.cuda.is_bf16_supported(**native)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supports = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)  # as of PyTorch 2.6 to 2.13
    return (supports is None or bool(supports())) and bool(processor()[1] & _INSTRUCTIONS[kind])


@cache
def choose_device(wanted: str) -> torch.device:
    """The GPU if there is one, unless the CPU is wanted; raises MachineError where a GPU is wanted and missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: PyTorch sees no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and features, from Linux, else as far as Python and PyTorch know them."""
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no more memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds that our `cores` were `busy` so far, `own` of them with this process and its ended children; by clock."""

    busy: float
    own: float
    at: float
    cores: int


def cpu_times() -> CpuTimes | None:
    """What the cores that this process may use have done so far; None except on Linux."""
    try:
        cores = os.sched_getaffinity(0)
        lines = Path("/proc/stat").read_text("ascii").splitlines()
    except (OSError, AttributeError, ValueError):
        return None
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    ticks = 0
    for line in lines:
        name, *counters = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            ticks += sum(int(counters[index]) for index in _BUSY if index < len(counters))
    return CpuTimes(ticks / os.sysconf("SC_CLK_TCK"), own, time.perf_counter(), len(cores))


def cores_of_others(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """How many cores other programs took in between, on average; None if that was too short or is unknown."""
    if before is None or after is None or after.at - before.at < _SHORTEST or after.busy <= before.busy:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.at - before.at)


def load_message(others: float | None, cores: int, threads: int) -> str:
    """A message if other programs take more cores than `threads` of ours leave free; else empty."""
    if others is None or others <= max(cores - threads, 0) + _SPARE:
        return ""
    return f"other programs took {others:.1f} of {cores} cores meanwhile"


def load_between(before: CpuTimes | None, after: CpuTimes | None, threads: int) -> str:
    """`load_message` of the time between two looks."""
    return load_message(cores_of_others(before, after), before.cores if before is not None else 1, threads)


def load_now(threads: int) -> str:
    """`load_message` of a moment in which this process does nothing."""
    if (before := cpu_times()) is None:
        return ""
    time.sleep(0.2)
    return load_between(before, cpu_times(), threads)

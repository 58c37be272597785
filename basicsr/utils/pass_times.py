"""Whether another precision is faster than float32 here: the processor's instructions, and passes timed in turn."""

from __future__ import annotations

import inspect
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from basicsr.utils.misc import wait_for
from basicsr.utils.precision import Amp, Precision
from basicsr.utils.reparameterization import convolutions
from basicsr.utils.timing import Measured, Spread, in_turn, load_now, ratios

# As /proc/cpuinfo and PyTorch call them: of x86, then of Arm.
_INSTRUCTIONS = {
    "bf16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"},
}
_PASS_SECONDS = 0.06  # in float32: images are as many and as large as that allows for
_ENOUGH_SECONDS, _MOST_SECONDS = 2.0, 3.0  # after the first, rounds are added only until there are a few
_ROUNDS, _FEW_ROUNDS = 25, 3
_SURE_ROUNDS, _SURE = 5, 1.1  # after so many, rounds end once their middle half is clear of what decides
_GROWTHS = 3  # of the images, until a pass takes its time
_SMALL_SIDE = 16
_MULTIPLE = 8  # of sides: discriminators halve images three times
_WORTH = 1.02  # a smaller gain is none
_WORTH_IN_PART = 0.87  # of passes without a method's heads, whose convolutions gain more than what is measured
NOT_SLOW = 1 / 1.1
"""A mode with a smaller gain is called slow."""

Modes = tuple[Amp, Amp]
"""Precision of the student and of the teacher; of a network by itself the first."""
Pass = Callable[[Modes, torch.Tensor], None]


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


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a pass, round by round; `load` if other programs took the cores, then of one thread by itself."""

    float32: tuple[float, ...]
    other: tuple[float, ...]
    load: str = ""

    @property
    def gain(self) -> Spread:
        """How many times as fast as float32 the other precision is."""
        return ratios(self.float32, self.other)

    def __str__(self) -> str:
        share = ratios(self.other, self.float32)
        how = f"; by one thread's work, as {self.load}" if self.load else ""
        return f"{share.median:.2f} times as long as float32 ({share.low:.2f} to {share.high:.2f}{how})"


def least_gain(in_part: bool = False) -> float:
    """The least gain for which `auto` takes bf16."""
    return _WORTH_IN_PART if in_part else _WORTH


def pick(units: bool, times: PassTimes | None, in_part: bool = False) -> tuple[Amp, str]:
    """What `auto` chooses, and why; `in_part` if a step also runs methods' heads, which the passes leave out."""
    if not units:
        return "none", "this device has no instructions for bf16"
    if times is None:
        return "none", "bf16 could not be measured"
    why = f"bf16 takes {times}" + (", the methods' heads left out" if in_part else "")
    return ("bf16" if times.gain.median >= least_gain(in_part) else "none"), why


def slow_mode(asked: str, amp: Amp, units: bool, times: PassTimes | None) -> list[str]:
    """A line if the precision that `asked`, such as 'val: amp: bf16', asks for is slower than float32; else none."""
    if times is None or times.gain.median > NOT_SLOW:
        return []
    why = "" if units else f": this device has no instructions for {amp}"
    return [f"{asked} is slow here: it takes {times}{why}; none (float32) is faster"]


def warn_if_slow(network: nn.Module, device: torch.device, amp: Amp, asked: str) -> list[str]:
    """`slow_mode` of a network on `device` in eval mode, which stays as it is; takes a second or two."""
    times = times_of_network(network, device, amp, NOT_SLOW)
    return slow_mode(asked, amp, has_units(device, amp), times) if amp != "none" else []


def faster_precision(network: nn.Module, device: torch.device) -> tuple[Amp, str]:
    """What `auto` chooses for running a network on `device` in eval mode, and why."""
    units = has_units(device, "bf16")
    return pick(units, times_of_network(network, device, "bf16", least_gain()) if units else None)


def times_of_network(network: nn.Module, device: torch.device, amp: Amp, decides: float) -> PassTimes | None:
    """`measure` of forward passes of one image in float32 and `amp`; None if `amp` is float32."""
    if amp == "none":
        return None

    @torch.no_grad()
    def run(modes: Modes, images: torch.Tensor) -> None:
        with Precision(device.type, modes[0]).autocast():
            network(images)

    return measure(run, ("none", "none"), (amp, amp), (1, input_channels(network), 4 * _SMALL_SIDE), device, decides)


def measure(
    run: Pass,
    plain: Modes,
    other: Modes,
    largest: tuple[int, int, int],
    device: torch.device,
    decides: float,
    layout: torch.memory_format = torch.contiguous_format,
) -> PassTimes | None:
    """Times passes in `plain` and `other` precisions, in turn; None where a network does not take such images.

    Rounds end when clearly above or below the gain that `decides`. `largest` is the largest number of images, their
    channels and their largest side.
    """
    number, channels, side = largest
    threads = torch.get_num_threads()
    load = load_now(threads) if device.type == "cpu" else ""
    clock = time.process_time if load else time.perf_counter
    generator = torch.Generator().manual_seed(0)

    def images(count: int, length: int) -> torch.Tensor:
        made = torch.rand(count, channels, length, length, generator=generator)
        return made.to(device).contiguous(memory_format=layout)

    def seconds(modes: Modes, batch: torch.Tensor) -> float:
        wait_for(device)
        start = clock()
        run(modes, batch)
        wait_for(device)
        return max(clock() - start, 1e-9)

    if load:
        torch.set_num_threads(1)  # several wait for each other, and for others' turns
    try:
        began = time.perf_counter()
        first = images(1, min(_SMALL_SIDE, side))
        for modes in (other, plain):  # kernels are chosen, memory is taken
            seconds(modes, first)
        batch, growths = first, _GROWTHS
        if device.type == "cuda":  # a small image takes about as long as a batch: only the whole batch tells
            batch, growths = images(number, side), 0
        for _ in range(growths):
            # A pixel of a small image costs more, by what each layer costs in any case.
            pixels = len(batch) * batch.shape[-1] ** 2
            count, length = fitting_size(seconds(plain, batch) / pixels, number, side, first.shape[-1])
            if count * length**2 <= pixels:
                break
            batch = images(count, length)
            seconds(plain, batch)
        sides = {"float32": lambda: seconds(plain, batch), "other": lambda: seconds(other, batch)}

        def goes_on(measured: Measured) -> bool:
            rounds = len(measured["other"])
            if rounds >= _SURE_ROUNDS and is_clear(ratios(measured["float32"], measured["other"]), decides):
                return False
            return time.perf_counter() - began < (_MOST_SECONDS if rounds < _FEW_ROUNDS else _ENOUGH_SECONDS)

        times = in_turn(sides, _ROUNDS, warm_up=int(batch is not first), goes_on=goes_on)
    except Exception:  # whatever a network raises: the run itself will report it
        return None
    finally:
        torch.set_num_threads(threads)
    return PassTimes(tuple(times["float32"]), tuple(times["other"]), load)


def is_clear(gain: Spread, decides: float) -> bool:
    """Whether the middle half of the rounds is clearly above or below the gain that decides."""
    return gain.low > decides * _SURE or gain.high * _SURE < decides


def fitting_size(seconds_a_pixel: float, number: int, side: int, small: int) -> tuple[int, int]:
    """How many images of which side a pass has: at most `number` whole ones of `side`, or a part of one."""
    pixels = _PASS_SECONDS / max(seconds_a_pixel, 1e-9)
    if pixels >= side**2:
        return min(number, int(pixels / side**2)), side
    return 1, min(side, max(small, int(pixels**0.5) // _MULTIPLE * _MULTIPLE))


def input_channels(network: nn.Module) -> int:
    """The number of channels of a network's images."""
    given = getattr(network, "in_channels", None)
    first = next((module for _, module in convolutions(network)), None)
    return given if isinstance(given, int) else first.in_channels if first is not None else 3

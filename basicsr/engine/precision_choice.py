"""In which precision a run computes: what `amp: auto` chooses, and that it stays so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from basicsr.config.schema import Options
from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.models import build_networks
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import CheckpointError, DataError
from basicsr.utils.pass_times import (
    NOT_SLOW,
    Modes,
    Pass,
    PassTimes,
    has_units,
    input_channels,
    least_gain,
    measure,
    pick,
    slow_mode,
    warn_if_slow,
)
from basicsr.utils.precision import Amp, Precision

STATE = "precision"
_KEYS = ("amp", "amp_teacher")
_PLAIN: Modes = ("none", "none")
_FAST: Modes = ("bf16", "bf16")
_USUAL_SIDE = 48  # of LR patches, where the dataset does not say


@dataclass(frozen=True)
class Choice:
    """In which precision a run computes."""

    amp: Amp  # of the student and the discriminator
    amp_teacher: Amp
    reason: str = ""  # how it was chosen, for the log; empty where the options say it
    warnings: tuple[str, ...] = ()

    def kept(self) -> dict[str, Amp]:
        """What a run's record and state keep of it, by option."""
        return {"amp": self.amp, "amp_teacher": self.amp_teacher}


def choose_precision(options: Options, device: torch.device, state: Mapping[str, Any] | None) -> Choice:
    """Chooses on rank 0 in which precision a run computes; all ranks must call and get the same.

    With `auto`, a run that goes on from a checkpoint's `state` keeps its precision on any machine; raises
    CheckpointError where the state names an unknown one. A new run takes bf16 where the device has units for it and a
    short measurement in the run's memory layout agrees; else float32. The measurement changes neither weights nor
    random numbers.
    """
    kept = kept_precision(state) if state is not None else None
    return on_master(lambda: _choose(options, device, kept))


def kept_precision(state: Mapping[str, Any]) -> dict[str, Amp] | None:
    """The precision of a checkpoint's run, by option; None where it is older than `auto`; raises CheckpointError."""
    kept = state.get(STATE)
    if kept is None:
        return None
    if not isinstance(kept, dict) or any(kept.get(key) not in ("none", "bf16", "fp16") for key in _KEYS):
        raise CheckpointError(f"the state's {STATE} is {kept!r}; it must name amp and amp_teacher: none, bf16 or fp16")
    return {key: kept[key] for key in _KEYS}


def choose_for_several(options: Options, file: Path) -> Choice:
    """Chooses for several trainings at once, by the networks of one of them, and keeps it in a file."""
    device = torch.device("cuda" if options.num_gpu != 0 and torch.cuda.is_available() else "cpu")
    choice = choose_precision(options, device, None)
    content = json.dumps({**choice.kept(), "told": choice.reason}, indent=1).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda out: out.write(content))
    return choice


def read_choice(file: Path) -> Choice | None:
    """What `choose_for_several` has kept; None where there is no such file. Raises DataError where it is damaged."""
    try:
        content: Any = json.loads(read_regular(file))
        kept = kept_precision({STATE: content})
        return Choice(kept["amp"], kept["amp_teacher"], str(content["told"])) if kept is not None else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read, and says in which precision trainings run; put it back") from error


def settled(options: Options, chosen: Mapping[str, Amp]) -> Options:
    """The options with the chosen precision in place of `auto`."""
    return options.model_copy(update={key: chosen[key] for key in _KEYS})


def _choose(options: Options, device: torch.device, kept: Mapping[str, Amp] | None) -> Choice:
    asked = (options.amp, options.amp_teacher or options.amp)
    reason, warnings = "", list[str]()
    if "auto" in asked and kept is None:
        assert options.train is not None
        in_part = any(block["type"] != "ResponseDistillation" for block in options.train.distill.values())  # no heads
        plain, fast = _with_auto_as(asked, _PLAIN), _with_auto_as(asked, _FAST)
        units = has_units(device, "bf16")
        times = _times(options, plain, fast, device, least_gain(in_part)) if units else None
        found, why = pick(units, times, in_part)
        modes = _with_auto_as(asked, (found, found))
        reason = f"amp auto: {_named(modes)}; {why}"
    else:
        modes = _with_auto_as(asked, (kept["amp"], kept["amp_teacher"]) if kept is not None else _PLAIN)
        warnings = _slower(options, modes, device)
        if "auto" in asked:
            reason = f"amp auto: {_named(modes)}, as in the run so far"
            advice = "a run keeps its precision, but for amp: none with --allow_config_change"
            warnings = [f"{line}; {advice}" for line in warnings]
    if options.val.amp != "none" and options.datasets_of("val"):
        with torch.random.fork_rng(devices=[]):
            try:
                network = build_networks(options, device)["g"].eval()
            except Exception:  # the run builds it too, and raises
                network = None
            if network is not None:
                warnings += warn_if_slow(network, device, options.val.amp, f"val: amp: {options.val.amp}")
    return Choice(*modes, reason=reason, warnings=tuple(warnings))


def _with_auto_as(asked: tuple[str, str], modes: Modes) -> Modes:
    student, teacher = (mode if one == "auto" else one for one, mode in zip(asked, modes, strict=True))
    return cast(Modes, (student, teacher))


def _named(modes: Modes) -> str:
    student, teacher = ("float32" if mode == "none" else mode for mode in modes)
    return student if student == teacher else f"{student}, the teacher {teacher}"


def _slower(options: Options, modes: Modes, device: torch.device) -> list[str]:
    """A warning where a run in this precision is slower than one in float32."""
    reduced = [mode for mode in modes if mode != "none"]
    if not reduced:
        return []
    asked = f"amp: {modes[0]}" if modes[0] == modes[1] else f"amp: {modes[0]} and amp_teacher: {modes[1]}"
    units = all(has_units(device, mode) for mode in reduced)
    return slow_mode(asked, reduced[0], units, _times(options, _PLAIN, modes, device, NOT_SLOW))


def _times(options: Options, plain: Modes, other: Modes, device: torch.device, decides: float) -> PassTimes | None:
    """Times of passes like a training step's, by networks that are built for it; None where that is not possible."""
    block = options.datasets["train"]
    size = block.arguments.get("gt_size")
    side = size // options.scale if isinstance(size, int) and size >= options.scale else _USUAL_SIDE
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        try:
            networks = build_networks(options, device)
        except Exception:  # the run builds them too, and raises
            return None
        largest = (block.batch_size_per_gpu, input_channels(networks["g"]), side)
        step = _step_of(networks, device)
        times = measure(step, plain, other, largest, device, decides, layout)
        if times is None and networks.pop("d", None) is not None:  # some take images of one size only
            times = measure(step, plain, other, largest, device, decides, layout)
    return times


def _step_of(networks: Mapping[str, nn.Module], device: torch.device) -> Pass:
    """Student, teacher and discriminator as in a training step, in eval mode, in which nothing in them changes."""
    for network in networks.values():
        network.eval()
    if "t" in networks:
        networks["t"].requires_grad_(False)

    def step(modes: Modes, images: torch.Tensor) -> None:
        student, teacher = (Precision(device.type, mode) for mode in modes)
        with torch.enable_grad(), student.autocast():
            output = networks["g"](images)
            if "d" in networks:  # which judges the output, and a real image
                output = networks["d"](output) + networks["d"](output.detach())
        if "t" in networks:
            with torch.no_grad(), teacher.autocast():
                networks["t"](images)
        if output.requires_grad:
            output.float().mean().backward()
        for network in networks.values():
            network.zero_grad(set_to_none=True)

    return step

"""The file of latencies: what it holds, how it is read, merged and shown. docs/latency.md describes it for people.

Figures measured here and figures put in by hand, of phones and GPUs, are alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from basicsr.files.atomic_files import write_atomically
from basicsr.utils.errors import DataError
from basicsr.utils.registry import thaw
from basicsr.utils.text import first_line, key_text, nearest, one_line, shown

VERSION = 1
Precision = Literal["float32", "fp16", "bf16", "int8"]

_Text = Annotated[str, Field(min_length=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


class Figure(BaseModel):
    """One latency. Times are milliseconds of one image (`batch` of 1); all but the first seven may be missing.

    Attributes:
        candidate: what was measured, in words: a file's name, a network.
        device: where: 'Pixel 8', 'AMD EPYC, 2 cores'.
        runtime: what ran it: 'onnxruntime', 'openvino', 'pytorch', or another device's.
        precision: that it computed in.
        size: height and width of the image that goes in.
        median_ms: median of the rounds.
        source: who says so: 'measure_latency.py', an address, 'measured by hand with benchmark_model'.
        low_ms, high_ms: quartiles.
        cpu_ms: processor time of a pass, of all threads together; other programs' load changes it less.
        rounds: how many measurements.
        threads: of the processor.
        settings: of the runtime, such as `layout: channels_last`.
        network: options block of the network, where it is known.
        sha256: of the file, with the files that belong to it.
        scale, channels: of the network.
        peak_memory_mb: most resident memory of a process with this candidate alone, in 10^6 bytes.
        energy_mj: millijoules of a pass, of the whole processor, other programs with it; None with a reason.
        energy_reason: why there is no energy.
        runtime_version: of its distribution.
        instruction_sets: of the processor, those that matter here.
        load: cores that other programs took meanwhile, on average.
        doubt: why it is no figure to quote; empty if nothing speaks against it.
        date: of the measurement, ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    candidate: _Text
    device: _Text
    runtime: _Text
    precision: Precision
    size: Annotated[tuple[_Count, _Count], Field(strict=False)]
    median_ms: _Positive
    source: _Text
    low_ms: _Positive | None = None
    high_ms: _Positive | None = None
    cpu_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    rounds: _Count | None = None
    threads: _Count | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    network: dict[str, Any] | None = None
    sha256: str | None = None
    scale: _Count | None = None
    channels: _Count | None = None
    peak_memory_mb: _Positive | None = None
    energy_mj: _Positive | None = None
    energy_reason: str | None = None
    runtime_version: str | None = None
    instruction_sets: tuple[str, ...] = Field((), strict=False)
    load: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    doubt: str = ""
    date: str | None = None

    @model_validator(mode="after")
    def _quartiles_in_order(self) -> Figure:
        if self.low_ms is not None and self.low_ms > self.median_ms:
            raise ValueError(f"low_ms {self.low_ms:g} is above median_ms {self.median_ms:g}")
        if self.high_ms is not None and self.high_ms < self.median_ms:
            raise ValueError(f"high_ms {self.high_ms:g} is below median_ms {self.median_ms:g}")
        return self

    @property
    def identity(self) -> str:
        """Equal for figures of which a later one replaces an earlier one."""
        return canonical(
            [self.candidate, self.device, self.runtime, self.precision, self.size, self.threads, self.settings]
        )


def canonical(value: Any) -> str:
    """Text that is the same for equal data: sorted keys, tuples as lists, read-only mappings as dicts."""
    return json.dumps(thaw(value), sort_keys=True, default=str)


def find(
    figures: Iterable[Figure],
    *,
    device: str,
    runtime: str,
    precision: str,
    size: tuple[int, int],
    candidate: str | None = None,
    network: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    threads: int | None = None,
) -> Figure | None:
    """The last figure of a candidate, known by its name, its options block or its file's digest; None if there is none.

    A figure without `threads` suits any number, and so does None.
    """
    wanted = (device, runtime, precision, tuple(size))
    block = None if network is None else canonical(network)
    found = None
    for figure in figures:
        if (figure.device, figure.runtime, figure.precision, figure.size) != wanted:
            continue
        if threads is not None and figure.threads not in (None, threads):
            continue
        is_it = (
            (candidate is not None and figure.candidate == candidate)
            or (sha256 is not None and figure.sha256 == sha256)
            or (block is not None and figure.network is not None and canonical(figure.network) == block)
        )
        found = figure if is_it else found
    return found


def merge(*groups: Iterable[Figure]) -> list[Figure]:
    """All figures; of those with one `identity` the last, in the place of the first."""
    merged: dict[str, Figure] = {}
    for group in groups:
        merged.update((figure.identity, figure) for figure in group)
    return list(merged.values())


def read_figures(path: Path) -> list[Figure]:
    """The figures of a file; DataError, one line for each mistake, where it is none or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file of latencies ({first_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("figures"), list):
        raise DataError(f'{path}: expected {{"version": {VERSION}, "figures": [...]}}; see docs/latency.md')
    if content.get("version") != VERSION:
        raise DataError(f"{path}: version {shown(content.get('version'))} of the format, known is {VERSION}")
    figures, mistakes = [], []
    for index, entry in enumerate(content["figures"]):
        try:
            figures.append(Figure.model_validate(entry))
        except ValidationError as error:
            mistakes += [f"{path}: {_told(('figures', index), mistake)}" for mistake in error.errors()]
    if mistakes:
        raise DataError("\n".join(mistakes))
    return figures


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _told(where: tuple[str | int, ...], mistake: Any) -> str:
    """A mistake of pydantic's as one line."""
    key = key_text((*where, *mistake["loc"]))
    kind, given = mistake["type"], mistake["input"]
    if kind == "missing":
        return f"{key} is required"
    if kind == "extra_forbidden":
        allowed = list(Figure.model_fields)
        name = str(mistake["loc"][-1])
        return f"{key}: unknown key{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
    if kind == "value_error":
        return one_line(f"{key}: {mistake['ctx']['error']}")
    return one_line(f"{key}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}, got {shown(given)}")


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Writes the file whole or not at all; raises DataError or CheckpointError where that fails."""
    entries = [figure.model_dump(mode="json", exclude_unset=True) for figure in figures]
    content = json.dumps({"version": VERSION, "figures": entries}, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder of {path}: {error.strerror}") from error
    write_atomically(path, lambda file: file.write(content.encode()))


def figures_table(figures: Sequence[Figure]) -> str:
    """Lines of text in columns; what is unknown is a dash."""
    header = (
        "candidate",
        "device",
        "runtime",
        "precision",
        "size",
        "threads",
        "median ms",
        "quartiles",
        "CPU ms",
        "MB",
    )
    rows = [header, *map(_row, figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    doubts = dict.fromkeys(figure.doubt for figure in figures if figure.doubt)
    reasons = dict.fromkeys(f"no energy: {figure.energy_reason}" for figure in figures if figure.energy_reason)
    return "\n".join([*lines, *(f"no figures to quote: {doubt}" for doubt in doubts), *reasons])


def _row(figure: Figure) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    name = figure.candidate + "".join(f", {key} {value}" for key, value in figure.settings.items())
    spread = "-" if figure.low_ms is None else f"{number(figure.low_ms)} to {number(figure.high_ms)}"
    size, threads = "x".join(map(str, figure.size)), "-" if figure.threads is None else str(figure.threads)
    return (
        *(one_line(name), one_line(figure.device), figure.runtime, figure.precision, size, threads),
        *(number(figure.median_ms), spread, number(figure.cpu_ms), number(figure.peak_memory_mb)),
    )

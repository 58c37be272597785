"""The table of devices as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from basicsr.latency.figures import Figure
from device_rows.rows import PYTORCH, Row

_HEADER = ("scale", "target", "precision", "off by", "PSNR", "lost", "ms", "quartiles", "MB", "remark")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row and its latency, or why it has none."""

    row: Row
    figure: Figure | None
    failed: str = ""


def as_json(entries: Sequence[Entry], about: Mapping[str, Any]) -> str:
    """All that is known of every row, and how it was made."""
    rows = [
        {
            **dataclasses.asdict(entry.row),
            "latency": None if entry.figure is None else entry.figure.model_dump(mode="json", exclude_none=True),
            "latency_reason": entry.failed,
        }
        for entry in entries
    ]
    return json.dumps({"about": dict(about), "rows": rows}, indent=1) + "\n"


def as_markdown(entries: Sequence[Entry], about: Mapping[str, Any], trained: Mapping[str, bool]) -> str:
    """A table for each network."""
    size, threads = about["size"], about["threads"]
    lines = [
        f"Made by `scripts/device_table.py` on {about['device']}, {about['date']}: {about['versions']}.",
        "",
        "- off by: the largest difference from PyTorch in float32; of int8 the root mean square from the network with"
        " fake quantisation",
        f"- PSNR: in dB, the mean over {about['images']}; lost: how far it is below the float network's in PyTorch",
        f"- ms: the median for one image of {size[0]}x{size[1]} on {threads} threads, all files of a network at a scale"
        " in turn; * no figure to quote, for other programs ran meanwhile or the times spread widely",
    ]
    for name in dict.fromkeys(entry.row.student for entry in entries):
        own = [entry for entry in entries if entry.row.student == name]
        lines += ["", f"## {name}", "", *_facts(own, trained[name]), ""]
        lines += [_line(_HEADER), _line(["---", "---", "---", *["---:"] * 6, "---"])]
        lines += [_line(_cells(entry, trained[name], size)) for entry in own]
    return "\n".join(lines) + "\n"


def _facts(entries: Sequence[Entry], trained: bool) -> list[str]:
    known = {entry.row.scale: entry.row for entry in entries if entry.row.parameters and entry.row.multiply_adds}
    costs = (
        f"x{scale} {(row.parameters or 0) / 1e6:.3f} M parameters, {(row.multiply_adds or 0) / 1e9:.2f} G multiply-adds"
        for scale, row in known.items()
    )
    untrained = [] if trained else ["Untrained: its PSNR says nothing."]
    return ["; ".join(costs) + ".", *untrained] if known else untrained


def _cells(entry: Entry, trained: bool, size: Sequence[int]) -> list[str]:
    row, figure = entry.row, entry.figure
    remarks = [] if row.size is None else [f"for {row.size[0]}x{row.size[1]} only"]
    if row.reason:
        remarks.append(row.reason)
    elif figure is None and entry.failed:
        remarks.append(f"no latency: {entry.failed}")
    elif figure is not None and list(figure.size) != list(size):
        remarks.append(f"ms at {figure.size[0]}x{figure.size[1]}")
    lost = None if row.psnr is None or row.float_psnr is None or row.target == PYTORCH else row.float_psnr - row.psnr
    return [
        f"x{row.scale}",
        row.target,
        row.precision,
        "-" if row.difference is None or row.target == PYTORCH else f"{row.difference:.1e}",
        _number(row.psnr if trained else None, ".2f"),
        _number(lost if trained else None, ".3f"),
        "-" if figure is None else f"{figure.median_ms:.4g}{'*' if figure.doubt else ''}",
        "-" if figure is None or figure.low_ms is None else f"{figure.low_ms:.4g} to {figure.high_ms:.4g}",
        _number(row.megabytes, ".2f"),
        "; ".join(remarks).replace("|", "/"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}".replace("-0.000", "0.000")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

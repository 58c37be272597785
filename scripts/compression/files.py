"""Files for runtimes: untrained candidates to be timed, and the chosen student's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from basicsr.archs import build_network
from basicsr.export.base import ExportFormat, Student, export_formats, names_of
from basicsr.export.exporting import export
from basicsr.export.int8 import Int8
from basicsr.export.tracing import Precision
from basicsr.files.atomic_files import sha256_of, write_atomically
from basicsr.runtimes.base import runtimes
from basicsr.utils.errors import OptionsError
from basicsr.utils.randomness import seed_everything
from compression.candidates import Candidate
from compression.options import CompressOptions, check_name
from compression.steps import files_in, key_of


def check_targets(options: CompressOptions) -> None:
    """Whether all targets are there, write the precisions asked for, and have their runtimes installed.

    Raises:
        OptionsError: a target or a precision of it is unknown.
        MachineError: a runtime is not installed.
    """
    known = names_of(targets=True)
    wanted = [("targets", entry.target, entry.precisions) for entry in options.targets]
    if options.measurements is None:
        wanted.append(("latency", options.latency.target, (options.latency.precision,)))
    for key, name, precisions in wanted:
        check_name("target", name, known, key)
        target = export_formats()[name]
        for precision in precisions:
            if precision not in target.precisions:
                raise OptionsError(
                    f"compress: {key}: {name} is written in {' or '.join(target.precisions)}, not in {precision}"
                )
            if precision == "int8" and options.quantize is None:
                raise OptionsError(f"compress: {key}: {name} in int8 needs compress: quantize, which is ~")
        target.require()


def target_of(name: str) -> ExportFormat:
    """A target by its name."""
    return export_formats()[name]


def version_of(target: str) -> str:
    """Of the runtime of a target, with its name."""
    runtime = runtimes()[target_of(target).runtime]
    return f"{runtime.name} {runtime.version()}"


def untrained(candidate: Candidate, scale: int, path: Path) -> None:
    """Writes a candidate with random weights, the same at each call, as a checkpoint."""
    seed_everything(0)
    network = build_network(candidate.block)
    content = io.BytesIO()
    torch.save({"params": network.state_dict(), "network": {**candidate.block, "scale": scale}}, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def written(
    student: Student,
    folder: Path,
    name: str,
    target: str,
    precision: Precision,
    size: tuple[int, int] | None = None,
    int8: Int8 | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Writes a student for a target; returns what is known of the file as JSON, and the paths, the file's first.

    `int8` has the images for that precision.

    Raises:
        UserError: as `export`.
    """
    made = export(student, folder, formats=(), targets=(target,), precision=precision, size=size, name=name, int8=int8)
    worst = max(made.checks, key=lambda check: check.difference / check.tolerance)
    result = {
        "files": [path.name for path in made.files],
        "bytes": sum(path.stat().st_size for path in files_in(made.files)),
        "difference": worst.difference,
        "allowed": worst.tolerance,
        "sizes": len(made.checks),
        "remarks": list(made.remarks),
        "runtime": version_of(target),
        "sha256": key_of({path.name: sha256_of(path) for path in files_in(made.files)}),
        "lost": made.losses[0].drop if made.losses else None,
    }
    return result, list(made.files)

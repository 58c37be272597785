"""Prints every benchmark with its target and what was reached, in Markdown.

    bash benchmarks/reference/setup.sh                       # once: the reference, basicsr 1.4.2, apart from ours
    python benchmarks/run.py                                 # all rows but `numbers`, which takes an hour
    python benchmarks/run.py --rows step_edsr data_sub --rounds 10 --json results.json

Both sides of a row run in turn, each in a process of its own; a ratio is the median of the rounds' ratios, and the
middle half of them stands beside it. The reference is basicsr 1.4.2 in float32, with contiguous tensors, from PNG
files; where it has no such part, or its environment is not there, it is our own plain path, and the table says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from basicsr.utils.errors import DataError, OptionsError, UserError
from basicsr.utils.timing import cpu_times, load_between
from benchmarks.bench import FALLBACK, Bench
from benchmarks.machine import describe
from benchmarks.rows import auto, cache, data, device, device_upscale, gpu, metrics, numbers, ranks, stalls, start, step
from benchmarks.table import Detail, Outcome, Report, details_tables, outcomes_table
from benchmarks.workers import check_reference

ROWS: Mapping[str, Callable[[Bench], Report]] = {
    name: row
    for module in (step, auto, cache, data, metrics, start, ranks, stalls, gpu, device, device_upscale, numbers)
    for name, row in module.ROWS.items()
}
LONG = ("numbers",)


def chosen_rows(names: Sequence[str] | None) -> list[str]:
    """The rows asked for, all but the long ones where none are; a name may be the beginning of several.

    Raises:
        OptionsError: there is no such row.
    """
    if not names:
        return [name for name in ROWS if name not in LONG]
    chosen: list[str] = []
    for name in names:
        found = [row for row in ROWS if row == name or row.startswith(f"{name}_")]
        if not found:
            near = difflib.get_close_matches(name, ROWS, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise OptionsError(f"--rows: there is no row '{name}'{hint}; there are: {', '.join(ROWS)}")
        chosen += [row for row in found if row not in chosen]
    return chosen


def run_rows(names: Sequence[str], bench: Bench) -> Iterator[Report]:
    """Measures the rows; one that fails says why and leaves the others their turn."""
    for name in names:
        started = time.monotonic()
        try:
            report = ROWS[name](bench)
        except Exception as error:  # what the other rows measure is worth having
            if not isinstance(error, UserError):
                traceback.print_exc()
            report = Report((Outcome(name, "-", remark=f"failed: {error}"),))
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        yield report


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where a row failed, 130 where it was stopped; targets do not enter."""
    arguments = _parse(argv)
    names, started = chosen_rows(arguments.rows), time.monotonic()
    reference = _reference(arguments.reference)
    versions = (
        check_reference(reference) if reference else f"{FALLBACK}: there is no environment of the reference (setup.sh)"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reports: list[Report] = []
    stopped, before = False, cpu_times()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(
            rounds=1 if arguments.quick else arguments.rounds,
            quick=arguments.quick,
            threads=arguments.threads,
            reference=reference,
            folder=Path(folder),
            benchmark=arguments.benchmark,
            training_images=arguments.training_images,
            students=arguments.students,
            teacher=arguments.teacher,
            compressed=tuple(arguments.compressed),
        )
        print(f"{describe(bench.threads)}\n\n{bench.peaks.table()}\n", flush=True)
        print(f"Compared with {versions}.\n", flush=True)
        try:
            for report in run_rows(names, bench):
                reports.append(report)
        except KeyboardInterrupt:
            stopped = True
            print("stopped; what was measured before:\n")
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    details = [detail for report in reports for detail in report.details]
    print(outcomes_table(outcomes))
    if details:
        print(f"\n{details_tables(details)}")
    if bench.idle:
        print(f"\nThe reference's process while it waits for its turn: {100 * max(bench.idle):.1f} % of a core.")
    print(f"\n{'Quick: small networks and images, no figures to quote. ' if bench.quick else ''}", end="")
    print(f"{bench.rounds} rounds, {bench.threads} threads, {time.monotonic() - started:.0f} s in all.", flush=True)
    if load := load_between(before, cpu_times(), bench.threads):
        print(f"No figures to quote: {load}.", flush=True)
    if arguments.json is not None:
        _write(arguments.json, bench, outcomes, details)
    failed = any(outcome.remark.startswith("failed") for outcome in outcomes)
    return 130 if stopped else int(failed)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(ROWS)}; 'step' takes all step_*")
    parser.add_argument("--reference", metavar="PYTHON", help="of the environment with basicsr 1.4.2")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each side (default: 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="default: 2")
    parser.add_argument("--quick", action="store_true", help="see whether everything runs, on small networks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--benchmark", type=Path, default=Path("datasets/benchmark"), help="Set5 and Set14 (numbers)")
    parser.add_argument(
        "--training-images",
        type=Path,
        default=Path("datasets/quickstart/train/HR"),
        metavar="DIR",
        help="photographs to train on (numbers), or to calibrate on (device)",
    )
    parser.add_argument("--students", type=Path, metavar="DIR", help="NAME.pth and NAME_int8.pth (device)")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="of the students (device)")
    parser.add_argument(
        "--compressed", type=Path, nargs="+", default=[], metavar="DIR", help="runs of compress.py (device)"
    )
    arguments = parser.parse_args(argv)
    for option in ("rounds", "threads"):
        if getattr(arguments, option) < 1:
            raise OptionsError(f"--{option} is {getattr(arguments, option)}, allowed: 1 and more")
    return arguments


def _reference(given: str | None) -> str | None:
    """Python of the reference; where none is given, of the folder that setup.sh makes, if it is there."""
    if given is None:
        usual = ROOT / "benchmarks/reference/.venv/bin/python"
        return str(usual) if usual.exists() else None
    if not Path(given).is_file():
        raise OptionsError(f"--reference: {given} is no file; give the environment's Python, see benchmarks/reference")
    return str(Path(given).absolute())


def _write(path: Path, bench: Bench, outcomes: Sequence[Outcome], details: Sequence[Detail]) -> None:
    content: dict[str, Any] = {
        "machine": describe(bench.threads),
        "peaks": dataclasses.asdict(bench.peaks),
        "reference": bench.reference_name,
        "rounds": bench.rounds,
        "quick": bench.quick,
        "outcomes": [{**dataclasses.asdict(outcome), "within": outcome.verdict} for outcome in outcomes],
        "details": [dataclasses.asdict(detail) for detail in details],
    }
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--json: cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_command(main))

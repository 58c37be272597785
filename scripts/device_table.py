"""Exports networks to every target and precision, runs each file, and writes the table: parity, PSNR, latency, size.

    python scripts/device_table.py --students plain_x{scale}.pth compact_x{scale}.pth --scales 2 3 4 \\
        --calibration datasets/BSDS400/LR_x{scale} --validation datasets/Set5/HR --output results/devices

A student is a checkpoint or an options file of a network, such as options/networks/plainsr_student.yml, whose weights
are random. {scale} stands for each scale. What fails is a row with the reason. Stopped, the same command goes on; rows
made from the same are not made again. OUTPUT then holds device_table.md, device_table.json, latency.json and files/.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 0)]

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import torch
from device_rows.rows import PYTORCH, Row, Rows, Settings, Student, Work, key_of
from device_rows.running import Runner
from device_rows.tables import Entry, as_json, as_markdown
from subprocesses import Programs, Stopped, exclusive

from basicsr.archs import build_network
from basicsr.config.yaml_files import load_yaml
from basicsr.export.base import export_formats, load_student, names_of
from basicsr.export.tracing import Precision
from basicsr.files.atomic_files import sha256_of, write_atomically
from basicsr.latency.candidates import Candidate
from basicsr.latency.figures import Figure, merge, read_figures, write_figures
from basicsr.latency.machine import this_device
from basicsr.latency.measuring import Limits, measure
from basicsr.runtimes.base import runtimes
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import load_pretrained

_NETWORKS = (".yml", ".yaml")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    targets = names_of(targets=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--students", nargs="+", required=True, metavar="FILE", help="checkpoints, or options files of networks")
    add("--scales", nargs="+", type=int, default=[2, 3, 4], metavar="N", help="default: 2 3 4")
    add("--targets", nargs="+", default=targets, choices=targets, help="default: all")
    add("--precisions", nargs="+", choices=("float32", "fp16", "int8"), help="default: all that a target has")
    add("--calibration", required=True, metavar="DIR", help="LR images, for the ranges of int8")
    add("--validation", nargs="+", required=True, metavar="DIR", help="HR [LR] images; LR are else MATLAB's bicubic")
    add("--max-drop", type=float, default=0.1, metavar="DB", help="PSNR that int8 may lose (default: %(default)s)")
    add("--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"), help="of latency (default: 256 256)")
    add("--one-size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"), help="of files that take one size only")
    add("--threads", type=int, default=2, help="of latency (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="of latency, for each file (default: %(default)s)")
    add("--timeout", type=float, default=1800.0, metavar="SECONDS", help="for one row (default: %(default)s)")
    add("--retry", action="store_true", help="make rows again that failed")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the tables and files")
    arguments = parser.parse_args(argv)
    if len(arguments.validation) > 2:
        raise OptionsError(f"--validation {' '.join(arguments.validation)}: give a folder of HR, and one of LR images")
    for name in ("threads", "seconds", "timeout", "scales", "size", "one_size"):
        values = getattr(arguments, name)
        if min(values if isinstance(values, list) else [values]) <= 0:
            raise OptionsError(f"--{name.replace('_', '-')}: give numbers above 0")
    return arguments


def students_of(arguments: argparse.Namespace) -> list[Student]:
    """Every network at every scale; untrained ones are written as checkpoints first. Raises for what is none."""
    found: list[Student] = []
    for given in arguments.students:
        for scale in arguments.scales:
            path = Path(given.format(scale=scale))
            is_block = path.suffix.lower() in _NETWORKS
            name = Path(given).stem.replace("_x{scale}", "").replace("{scale}", "")
            if is_block:
                path = _untrained(path, scale, arguments.output / "untrained")
            elif scale not in _scales_of(path):
                if "{scale}" in given:
                    raise CheckpointError(f"{path} is no network for x{scale}")
                continue  # a checkpoint of another scale
            found.append(Student(name, path, scale, sha256_of(path), trained=not is_block))
        if not any(student.name == name for student in found):
            raise OptionsError(f"--students {given} is for none of the scales {' '.join(map(str, arguments.scales))}")
    labels = [student.label for student in found]
    for label in labels:
        if labels.count(label) > 1:
            raise OptionsError(f"--students: two are called {label}; give files of other names")
    return found


def _scales_of(path: Path) -> tuple[int, ...]:
    pretrained = load_pretrained(path)
    return pretrained.scales or (pretrained.scale,)


def _untrained(file: Path, scale: int, folder: Path) -> Path:
    """A checkpoint of random weights of the network that an options file describes."""
    block = load_yaml(file).data()
    if not isinstance(block, dict) or "type" not in block:
        raise OptionsError(f"{file} is no options file of a network, as those in options/networks are")
    torch.manual_seed(0)
    network = build_network({**block, "upscale": scale})
    path = folder / f"{file.stem}_x{scale}.pth"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"params": network.state_dict(), "network": {**block, "upscale": scale, "scale": scale}}
    if not path.is_file() or not _same(torch.load(path, weights_only=True), content):
        write_atomically(path, lambda opened: torch.save(content, opened))
    return path


def _same(one: dict, other: dict) -> bool:
    states = one["params"], other["params"]
    return (
        one["network"] == other["network"]
        and states[0].keys() == states[1].keys()
        and all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    )


def works_of(student: Student, arguments: argparse.Namespace, settings: Settings) -> list[Work]:
    """The rows of one student; PyTorch itself first."""
    wanted: list[tuple[str, Precision, str]] = [(PYTORCH, "float32", torch.__version__)]
    for name in arguments.targets:
        entry = export_formats()[name]
        runtime = runtimes()[entry.runtime]
        version = runtime.version() if runtime.installed() else "not installed"
        wanted += [
            (name, precision, version)
            for precision in entry.precisions
            if arguments.precisions is None or precision in arguments.precisions
        ]
    return [
        Work(student, target, precision, key_of(student, target, precision, settings, version))
        for target, precision, version in wanted
    ]


def measured(
    works: Sequence[Work], rows: Sequence[Row], arguments: argparse.Namespace, programs: Programs
) -> dict[str, Figure | str]:
    """The latency of every file of one student, by label, or why there is none; those known are kept."""
    store = arguments.output / "latency.json"
    known = read_figures(store) if store.is_file() else []
    found: dict[str, Figure | str] = {}
    candidates = []
    for work, row in zip(works, rows, strict=True):
        if row.reason:
            continue
        size = (row.size[0], row.size[1]) if row.size is not None else tuple(arguments.size)
        source = work.student.path if row.target == PYTORCH else arguments.output / "files" / row.files[0]
        runtime = None if row.target == PYTORCH else export_formats()[row.target].runtime
        candidate = Candidate(row.label, source, size, arguments.threads, runtime)
        earlier = next((figure for figure in known if _is_of(figure, candidate)), None)
        if earlier is None:
            candidates.append(candidate)
        else:
            found[row.label] = earlier
    if candidates:
        print(f"{works[0].student.label}: measuring {len(candidates)} latencies", flush=True)
        result = measure(candidates, Limits(seconds=arguments.seconds), should_stop=lambda: bool(programs.received))
        if programs.received:
            raise Stopped
        write_figures(store, merge(known, result.figures))
        found.update({figure.candidate: figure for figure in result.figures})
        found.update(result.failed)
    return found


def _is_of(figure: Figure, candidate: Candidate) -> bool:
    same = figure.candidate == candidate.label and figure.device == this_device() and figure.size == candidate.size
    return same and figure.threads == candidate.threads and figure.sha256 == candidate.digest()


def make(arguments: argparse.Namespace) -> int:
    """Makes the table; returns the exit code.

    Raises:
        Stopped: a signal came.
        UserError: one of its kinds, for anything that the user can mend.
    """
    folder: Path = arguments.output
    settings = Settings(
        arguments.calibration, tuple(arguments.validation), arguments.max_drop, tuple(arguments.one_size)
    )
    with (
        exclusive(folder / ".lock", f"another process is making the table in {folder}") as lock,
        Programs() as programs,
    ):
        students = students_of(arguments)
        if arguments.precisions is None or "int8" in arguments.precisions:  # wrong images are told before any work
            for student in {student.scale: student for student in students}.values():
                settings.images(load_student(student.path, scale=student.scale))
        works = {student.label: works_of(student, arguments, settings) for student in students}
        store = Rows(folder / "rows")
        if arguments.retry:
            store.forget([work for group in works.values() for work in group])
        runner = Runner(folder, settings, arguments.timeout, programs, lock, lambda line: print(line, flush=True))
        entries: list[Entry] = []
        for student in students:
            runner.make(works[student.label])
            rows = [row for work in works[student.label] if (row := store.read(work)) is not None]
            latencies = measured(works[student.label], rows, arguments, programs)
            for row in rows:
                latency = latencies.get(row.label)
                figure = latency if isinstance(latency, Figure) else None
                entries.append(Entry(row, figure, latency if isinstance(latency, str) else ""))
            write(entries, students, arguments)
    print(f"wrote {folder / 'device_table.md'} and device_table.json: {len(entries)} rows", flush=True)
    return 0


def write(entries: Sequence[Entry], students: Sequence[Student], arguments: argparse.Namespace) -> None:
    """Writes both tables with what is there so far."""
    about = {
        "device": this_device(),
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(sorted({entry.row.runtime for entry in entries if entry.row.runtime})),
        "images": "/".join(Path(arguments.validation[0]).absolute().parts[-2:]),
        "size": arguments.size,
        "threads": arguments.threads,
    }
    trained = {student.name: student.trained for student in students}
    texts = {"device_table.md": as_markdown(entries, about, trained), "device_table.json": as_json(entries, about)}
    for name, text in texts.items():
        write_atomically(arguments.output / name, partial(_write_text, text))


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        return make(parse(argv))
    except (KeyboardInterrupt, Stopped):
        print("stopped; to go on where it stopped, give the same command again", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The steps of scripts/quickstart.sh, each by the command that a user would type.

A step that is done is left out; a training that was interrupted goes on where it stopped; one whose options, data or
teacher have changed since starts anew, and train.py renames the folder of the old one.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (2, 1)]

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

import photographs
import torch
from subprocesses import Programs, StepFailed, Stopped, exclusive

from basicsr.config.load import load_options, load_test_options, no_warning, resolved_yaml, todays_text
from basicsr.config.schema import Options
from basicsr.data import build_eval_dataset
from basicsr.engine.precision_choice import choose_for_several, read_choice
from basicsr.export.base import export_formats
from basicsr.inference.file_networks import FileNetwork
from basicsr.metrics.evaluator import evaluate
from basicsr.utils.errors import DataError

DATA = Path("datasets/quickstart")
RESULTS = Path("results/quickstart")
PRECISION = Path("experiments/quickstart_precision.json")
OPTIONS = Path("options/train")
TEST_OPTIONS = Path("options/test/quickstart.yml")
TRAININGS = {
    "teacher": "Teacher",
    "scratch": "Student, alone",
    "mcadkd": "The same student from the same initial weights, distilled by MCAD-KD",
}
STEPS = len(TRAININGS) + 3
TARGET = "onnxruntime"
INT8 = Path(f"exported/quickstart/student_{TARGET}_int8.onnx")
MAX_DROP = 0.3  # dB; more than export.py allows, for networks that were trained for a minute
FREE_BYTES = 200 * 2**20
GO_ON = "to go on where it stopped: bash scripts/quickstart.sh"

State = Literal["start", "resume", "done"]


def state_of(options: Options, inputs: Iterable[Path]) -> State:
    """What is left to do of a training.

    Args:
        options: as the next run would have them.
        inputs: files that it is made from.
    """
    kept = options.experiment_folder / f"{options.name}.yml"
    if not kept.is_file():
        return "start"
    if todays_text(kept.read_text("utf-8", "replace").partition("\n")[2]) != resolved_yaml(options):
        return "start"
    if not _is_newer(kept, inputs):
        return "start"
    return "done" if weights_of(options).is_file() else "resume"


def _is_newer(file: Path, inputs: Iterable[Path]) -> bool:
    """Whether no input was written after `file`, which exists."""
    return all(path.stat().st_mtime <= file.stat().st_mtime for path in inputs)


def weights_of(options: Options) -> Path:
    """Where a finished training leaves its network."""
    return options.models_folder / "net_g_latest.pth"


def precision(fresh: bool) -> str:
    """What `amp: auto` is in all trainings, which are to be compared: chosen by MCAD-KD's networks, and kept."""
    kept = read_choice(PRECISION) if not fresh else None
    if kept is None:
        kept = choose_for_several(
            load_options(OPTIONS / "quickstart_mcadkd.yml", training=True, paths=False, warn=no_warning), PRECISION
        )
    print(f"{kept.reason}; in all trainings", flush=True)
    return kept.amp


def train(file: Path, amp: str, fresh: bool, lock: int) -> Path:
    """Trains what an options file describes, as far as it is not done; returns the path of the weights."""
    change = f"amp={amp}"
    options = load_options(file, overrides=[change], training=True, warn=no_warning)
    inputs = [DATA / photographs.MANIFEST]
    if options.path.pretrain_network_t is not None:
        inputs.append(Path(options.path.pretrain_network_t))
    state = "start" if fresh else state_of(options, inputs)
    if state == "done":
        print(f"done already: {weights_of(options)}", flush=True)
    else:
        resume = ["--auto_resume"] if state == "resume" else []
        run(["basicsr/train.py", "-opt", str(file), *resume, "--force_yml", change], lock)
    return weights_of(options)


def compare(weights: Sequence[Path], fresh: bool, lock: int) -> None:
    """Tests all networks, and prints the table."""
    summary = RESULTS / "summary.md"
    inputs = [*weights, DATA / photographs.MANIFEST, TEST_OPTIONS]
    complete = summary.is_file() and (RESULTS / "report.html").is_file()
    if fresh or not complete or not _is_newer(summary, inputs):
        run(["basicsr/test.py", "-opt", str(TEST_OPTIONS)], lock)
    else:
        print(f"done already: {summary}\n{summary.read_text('utf-8')}", end="", flush=True)


def ship(weights: Path, fresh: bool, lock: int) -> None:
    """Exports a network in int8, and prints the line that the file adds to the table.

    Without the packages it says so in a line, and the other steps' results stand.
    """
    packages = export_formats()[TARGET].packages
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        print(f"left out: {', '.join(missing)} not installed; to have this step: bash install.sh export", flush=True)
        return
    if fresh or not INT8.is_file() or not _is_newer(INT8, [weights, DATA / photographs.MANIFEST]):
        name = ["--output", str(INT8.parent), "--name", INT8.name.partition(f"_{TARGET}")[0]]
        chosen = ["--target", TARGET, "--precision", "int8", "--max-drop", str(MAX_DROP)]
        run(["scripts/export.py", "--model", str(weights), *name, *chosen], lock)
    else:
        print(f"done already: {INT8}", flush=True)
    print(table_of(INT8, TEST_OPTIONS), flush=True)


def table_of(file: Path, test_options: Path) -> str:
    """Figures of an exported file, run by its runtime on the sets of a test: a line for each set."""
    (options,) = load_test_options(test_options, paths=False, warn=no_warning)
    network = FileNetwork(export_formats()[TARGET].load(file), file.name)
    cpu, lines = torch.device("cpu"), ["| Method | Set | PSNR/SSIM |", "| --- | --- | ---: |"]
    for block in options.datasets_of("test").values():
        found = evaluate(network, build_eval_dataset(block), options.val.metrics, cpu, scale=options.scale)
        assert found is not None  # nothing asks it to stop
        figures = found.means()
        lines.append(f"| int8, {TARGET} | {block.name} | {figures['psnr']:.2f}/{figures['ssim']:.4f} |")
    return "\n".join(lines)


def run(arguments: Sequence[str], lock: int) -> None:
    """Runs a Python program as a process of its own, and hands it the signals that this one gets.

    Args:
        arguments: the program and its arguments.
        lock: file descriptor whose lock lasts while the program runs, even if this process is killed.

    Raises:
        Stopped: a signal came.
        StepFailed: the program failed.
    """
    print(f"$ python {' '.join(arguments)}", flush=True)
    with Programs() as programs:
        code = programs.start(arguments, lock=lock).wait()
    if programs.received:
        raise Stopped
    if code != 0:
        raise StepFailed(f"{arguments[0]} failed (see above); after mending it, {GO_ON}", code if code > 0 else 1)


@contextmanager
def only_one() -> Iterator[int]:
    """Holds a lock, a file descriptor, so that two quickstarts do not train in the same folders.

    Raises:
        MachineError: another one runs.
        DataError: nothing can be written here.
    """
    busy = f"another quickstart is running in {Path.cwd()}; wait for its end"
    with exclusive(Path("datasets/.quickstart.lock"), busy) as lock:
        yield lock


def check_space() -> None:
    """Raises DataError where the disk is too full for the data and the checkpoints."""
    free = shutil.disk_usage(".").free
    if free < FREE_BYTES:
        raise DataError(
            f"no space: {free // 2**20} MB are left in {Path.cwd()}, {FREE_BYTES // 2**20} are needed; free some"
        )


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """Prints a heading, and afterwards how long the step took."""
    started = time.monotonic()
    print(f"\n[{number}/{STEPS}] {title}", flush=True)
    yield
    print(f"    {time.monotonic() - started:.0f} s", flush=True)


def quickstart(fresh: bool) -> None:
    """All steps.

    Args:
        fresh: do everything again.
    """
    started = time.monotonic()
    with only_one() as lock:
        check_space()
        with step(1, "Data: photographs of scikit-image, HR and LR"):
            photographs.main(["--output", str(DATA)])
            amp = precision(fresh)
        weights = []
        for number, (name, title) in enumerate(TRAININGS.items(), 2):
            with step(number, title):
                weights.append(train(OPTIONS / f"quickstart_{name}.yml", amp, fresh, lock))
        with step(STEPS - 1, "Comparison on validation photographs (scratch: the student alone, mcadkd: distilled)"):
            compare(weights, fresh, lock)
        with step(STEPS, "The distilled student for devices: calibrated, in int8, run by onnxruntime"):
            ship(weights[list(TRAININGS).index("mcadkd")], fresh, lock)
    print(f"\nAll of it: {time.monotonic() - started:.0f} s. Tables, plots and pictures: {RESULTS / 'report.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="quickstart.sh", description="Trains a small teacher and student, distils, compares, and exports in int8."
    )
    parser.add_argument("--fresh", action="store_true", help="do everything again; earlier runs are renamed")
    fresh = parser.parse_args(argv).fresh
    try:
        quickstart(fresh)
    except (KeyboardInterrupt, Stopped):
        print(f"stopped; {GO_ON}", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

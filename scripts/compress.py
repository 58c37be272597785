"""From a teacher and a budget to a student that runs on the device: one command, every step measured.

    python scripts/compress.py -opt options/compress/quickstart.yml
    python scripts/compress.py -opt options/compress/quickstart.yml --dry-run

Measures untrained candidates, trains those on the budget's edge briefly, distils the winner, quantises it with
distillation, and writes files for its targets. Interrupted, the same command goes on where it stopped.
experiments/compress/NAME then holds options of every step, weights, files and report.html: docs/compress.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 0)]

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

from compression.checking import check_all
from compression.estimates import show_plan
from compression.options import read_settings
from compression.pipeline import Pipeline, all_candidates, run_folder
from compression.progress import Progress
from compression.run import execute
from subprocesses import Stopped, exclusive


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("-opt", "--opt", type=Path, required=True, metavar="FILE", help="options: those of a training, and `compress`")
    add("--dry-run", action="store_true", help="only check, and print the plan with estimates of time")
    add(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set options: compress:budget:ms=20 train:total_iter=1000 ...",
    )
    return parser.parse_args(argv)


def compress(arguments: argparse.Namespace) -> int:
    """Does the run; returns the exit code.

    Raises:
        Stopped: a signal came.
        UserError: one of its kinds, for anything that the user can mend.
    """
    settings = read_settings(arguments.opt, arguments.force_yml)
    candidates, compared = all_candidates(settings)
    folder = run_folder(settings)
    teacher, remarks = check_all(settings, [*candidates, *compared], folder)
    if arguments.dry_run:
        progress = Progress(None)
        for line in (*settings.warnings, *remarks):
            progress.say(line)
        show_plan(settings, [*candidates, *compared], teacher, folder, progress)
        return 0
    busy = f"another process is working on the run {settings.options.name}; wait for its end"
    with exclusive(folder / ".lock", busy):
        progress = Progress(folder / "log.txt")
        for line in (*settings.warnings, *remarks):
            progress.say(line)
        execute(Pipeline(settings, folder, teacher, progress))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    try:
        return compress(arguments)
    except (KeyboardInterrupt, Stopped):
        print("\nstopped; to go on where it stopped, give the same command again", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(run_command(main))

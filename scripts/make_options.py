"""Writes options/train and options/test: one file for each row of the papers' tables, from the tables in option_files.

Neighbours in a table differ only in the piece of options/methods that they build on, and cannot drift apart.
`--check` writes nothing, and says which files differ from what would be written. The quickstart has files of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 0)]

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from option_files import restoration, super_resolution

OPTIONS = Path(__file__).resolve().parents[1] / "options"


def files() -> dict[Path, str]:
    """Every file that is made here, by its path, and its content."""
    made = {
        OPTIONS / "train" / f"{row.name}.yml": row.text()
        for row in (*super_resolution.papers_tables(), *super_resolution.high_compression())
    }
    made.update({OPTIONS / "train" / f"{name}.yml": text for name, text in restoration.training_files()})
    tests = (*super_resolution.test_files(), *restoration.test_files())
    made.update({OPTIONS / "test" / f"{name}.yml": text for name, text in tests})
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Writes one options file for each row of the papers' tables.")
    parser.add_argument("--check", action="store_true", help="only say which files would change; code 1 if any")
    check = parser.parse_args(argv).check
    made = files()
    differing = [path for path, text in made.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in differing:
        if not check:
            path.write_text(made[path], "utf-8")
        print(f"{'differs' if check else 'written'}: {path.relative_to(OPTIONS.parent)}")
    print(f"{len(made)} files, {len(differing)} {'differ' if check else 'written'}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(run_command(main))

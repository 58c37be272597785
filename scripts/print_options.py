"""Prints an options file as a run will see it: merged with the files it builds on, defaults filled in, checked.

A file with a section `train` is taken as train.py sees it, any other as test.py does.

python scripts/print_options.py options/train/mcadkd_edsr_x2.yml
python scripts/print_options.py options/test/edsr_x2.yml --force_yml val:save_img=false
python scripts/print_options.py options/train/mcadkd_edsr_x2.yml --positions
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from basicsr.config.load import load_options, load_test_options, resolved_yaml
from basicsr.config.yaml_files import load_yaml
from basicsr.utils.text import key_text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="options file")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="set options")
    parser.add_argument("--check_paths", action="store_true", help="also look whether data and weights are there")
    parser.add_argument("--positions", action="store_true", help="print file and line of every key instead")
    arguments = parser.parse_args(argv)
    read: dict[str, Any] = {"overrides": arguments.force_yml, "paths": arguments.check_paths}
    document = load_yaml(arguments.file)
    for override in arguments.force_yml:
        document.set(override)
    if "train" in document.data():
        loaded = [load_options(arguments.file, training=True, **read)]
    else:
        loaded = load_test_options(arguments.file, **read)
    if not arguments.positions:
        print("---\n".join(resolved_yaml(options) for options in loaded), end="")
        return 0
    for key, position in document.positions().items():
        print(f"{position}: {key_text(key)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

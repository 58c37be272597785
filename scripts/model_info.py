"""Prints parameters and multiply-adds of every network in an options file.

    python scripts/model_info.py -opt options/train/mcadkd_edsr_x4.yml [--input 3 256 256]

The convention is that of the papers' tables: see basicsr/utils/complexity.py. The input is one image as the network
gets it: the low-resolution one for super-resolution, the high-resolution one for a discriminator.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from basicsr.archs import build_network
from basicsr.engine.command import run_command
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.options import load_options
from basicsr.utils.options_schema import Options
from basicsr.utils.yaml_loader import load_yaml


def networks_of(options: Options) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields name and options of every network: network_g, network_t, network_d, and a test's rows."""
    for name in ("network_g", "network_t", "network_d"):
        if (block := getattr(options, name)) is not None:
            yield name, block
    for name, row in options.networks.items():
        if row.network is not None:
            yield name, row.network


def describe(name: str, block: Mapping[str, Any], input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Returns a row of the table: name, type, parameters in millions, multiply-adds in billions."""
    network = build_network(block)
    try:
        cost = f"{count_multiply_adds(network, input_shape) / 1e9:.2f}"
    except DataError as error:
        cost = f"- ({error})"
    return name, block["type"], f"{count_parameters(network) / 1e6:.2f}", cost


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Lays rows of text out in columns, numbers (all columns from the third) to the right."""
    widths = [max(len(row[column]) for row in rows if not row[column].startswith("-")) for column in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-opt", required=True, metavar="FILE", help="options file, of training or testing")
    parser.add_argument(
        "--input", nargs=3, type=int, default=(3, 256, 256), metavar=("C", "H", "W"), help="default: 3 256 256"
    )
    arguments = parser.parse_args(argv)
    channels, height, width = arguments.input
    if min(arguments.input) < 1:
        raise OptionsError(f"--input {channels} {height} {width}: give three numbers of at least 1")
    training = "train" in load_yaml(arguments.opt).data()
    options = load_options(arguments.opt, training=training, paths=False)
    rows: list[tuple[str, ...]] = [
        ("network", "type", "parameters (M)", f"multiply-adds (G) at {channels}x{height}x{width}")
    ]
    rows += [describe(name, block, (channels, height, width)) for name, block in networks_of(options)]
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Draws training curves of one or several runs on common axes.

python scripts/plot_curves.py experiments/mcadkd_edsr_x4 experiments/scratch_edsr_x4
python scripts/plot_curves.py experiments/*_edsr_x4 --keys 'metrics/*/psnr' losses/l_pix --smooth --output curves.pdf

The figures come from experiments/NAME/history.jsonl, which train.py keeps. --keys takes their names, with * for any
text: metrics/DATASET/METRIC, losses/NAME, lr/GROUP, time/iteration, time/data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from basicsr.report.curves import choose_keys, curves_figure, read_runs
from basicsr.report.plots import write_figure
from basicsr.utils.errors import CheckpointError, OptionsError

_FORMATS = (".png", ".svg", ".pdf")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="such as experiments/NAME")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    parser.add_argument(
        "--keys", nargs="+", default=[], metavar="KEY", help="what to draw; default: all metrics and the pixel loss"
    )
    parser.add_argument(
        "--smooth",
        nargs="?",
        type=float,
        const=0.9,
        default=0.0,
        metavar="WEIGHT",
        help="average what is logged in training over time; weight of the past, 0.9 if not given",
    )
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if output.suffix not in _FORMATS:
        raise OptionsError(f"--output {output}: its ending must be one of {', '.join(_FORMATS)}")
    if not 0 <= arguments.smooth < 1:
        raise OptionsError(f"--smooth {arguments.smooth:g}: the weight must be at least 0 and less than 1")
    runs = read_runs(arguments.runs)
    keys = choose_keys(runs, arguments.keys)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror}") from error
    write_figure(curves_figure(runs, keys, smooth=arguments.smooth), output)
    print(f"{output}: {', '.join(keys)} of {', '.join(run.name for run in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Draws training curves of one or several runs on common axes.

python scripts/plot_curves.py experiments/mcadkd_edsr_x4 experiments/scratch_edsr_x4
python scripts/plot_curves.py experiments/*_edsr_x4 --keys 'metrics/*/psnr' losses/l_pix --smooth --output curves.pdf

The figures come from experiments/NAME/history.jsonl, which train.py keeps. --keys takes their names, with * for any
text: metrics/DATASET/METRIC, losses/NAME, lr/GROUP, time/iteration, time/data.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from basicsr.files.run_history import HISTORY, ITERATION, read_history
from basicsr.report.plots import COLOURS, MARKERS, plot_style, write_figure
from basicsr.utils.errors import CheckpointError, DataError, OptionsError
from basicsr.utils.text import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
# Cycles of lengths without a common factor: 7 colours, 4 kinds of lines, 10 markers.
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.2)), (0, (7, 2, 1.2, 2)))
_MARKED = 40  # curves of at most so many points have markers
_LOGARITHMIC = 8.0  # ratio of largest to smallest from which a loss is drawn logarithmically
_DEFAULT_LOSSES = ("losses/l_pix", "losses/l_total")


@dataclass(frozen=True)
class RunHistory:
    """A run's name in the legend, and the lines of its history in their order."""

    name: str
    entries: Sequence[Mapping[str, float]]

    def names(self) -> list[str]:
        """Names of all figures, in the order of their first appearance."""
        return [key for key in dict.fromkeys(key for entry in self.entries for key in entry) if key != ITERATION]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Iterations and values of a figure."""
        points = [(entry[ITERATION], entry[key]) for entry in self.entries if key in entry]
        return [iteration for iteration, _ in points], [value for _, value in points]


def read_runs(folders: Sequence[Path]) -> list[RunHistory]:
    """Reads the histories of runs, called by their folders; raises DataError for a folder without figures."""
    names = [os.path.basename(os.path.realpath(folder)) for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        if not os.path.isdir(folder):
            raise DataError(f"there is no folder {folder}; name the folder of a run, such as experiments/NAME")
        path = folder / HISTORY
        if not os.path.isfile(path):
            raise DataError(
                f"{folder} has no {HISTORY}: no training run's folder, or that of a run from before histories were"
                " kept, whose figures are in its log only"
            )
        run = RunHistory(name if names.count(name) == 1 else str(folder), read_history(path))
        if not run.names():
            raise DataError(f"{path} holds no figures yet; wait for the run's first line in the log")
        runs.append(run)
    return runs


def choose_keys(runs: Sequence[RunHistory], patterns: Sequence[str]) -> list[str]:
    """Names of the figures that match the patterns; by default all metrics and the pixel loss."""
    there = list(dict.fromkeys(key for run in runs for key in run.names()))
    if not patterns:
        losses = [key for key in _DEFAULT_LOSSES if key in there][:1]
        return [*(key for key in there if key.startswith("metrics/")), *losses] or there
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = [key for key in there if fnmatchcase(key, pattern)]
        if not matches:
            raise OptionsError(f"no run has '{pattern}'{nearest(pattern, there)}; there are: {', '.join(there)}")
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential average without a bias to zero at the start, NaN skipped; `weight` in [0, 1) is that of the past."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        if not math.isnan(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        result.append(average / total if total else math.nan)
    return result


def curves_figure(runs: Sequence[RunHistory], keys: Sequence[str], *, smooth: float = 0.0) -> Figure:
    """Draws a panel for each of `keys`, a line for each run; `smooth` averages what is logged in training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if len(keys) == 1 else 2 if len(keys) in (2, 4) else 3
    rows = math.ceil(len(keys) / columns)
    width = 5.6 if columns == 1 else 4.1 * columns
    with plot_style():
        figure = Figure(figsize=(width, 0.5 + 2.9 * rows), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(keys) :]:
            axes.remove()
        handles: dict[str, Any] = {}
        for index, (axes, key) in enumerate(zip(panels, keys, strict=False)):
            _draw(axes, runs, key, 0.0 if key.startswith("metrics/") else smooth, handles)
            if index >= len(keys) - columns:
                axes.set_xlabel("iteration")
        ordered = {run.name: handles[run.name] for run in runs if run.name in handles}
        per_row = max(1, int(width * 13 / (6 + max(map(len, ordered)))))
        style: dict[str, Any] = {"loc": "outside upper left", "frameon": False, "handlelength": 3.2}
        figure.legend(ordered.values(), ordered, ncols=min(len(ordered), per_row), **style)
    return figure


def _draw(axes: Axes, runs: Sequence[RunHistory], key: str, smooth: float, handles: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    drawn: list[float] = []
    for index, run in enumerate(runs):
        iterations, values = run.series(key)
        if not iterations:
            continue
        colour = COLOURS[index % len(COLOURS)]
        if smooth:
            axes.plot(iterations, values, color=colour, linewidth=0.6, alpha=0.18)
        (line,) = axes.plot(
            iterations,
            smoothed(values, smooth) if smooth else values,
            color=colour,
            linestyle=_LINES[index % len(_LINES)],
            linewidth=1.4,
            marker=MARKERS[index % len(MARKERS)] if len(iterations) <= _MARKED else None,
            markersize=3.2,
        )
        if run.name not in handles or line.get_marker() not in (None, "None"):
            handles[run.name] = line
        drawn += [value for value in values if math.isfinite(value)]
    title, label = _names(key)
    axes.set_title(title, loc="left")
    axes.set_ylabel(label)
    last = max(iteration for run in runs for iteration in run.series(ITERATION)[0])
    axes.set_xlim(-0.02 * last, 1.02 * last)
    # Numbers as people write them: no powers of ten, no decimals that mean nothing.
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if key.startswith(("losses/", "lr/")) and drawn and min(drawn) > 0 and max(drawn) > _LOGARITHMIC * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    if not key.startswith("metrics/"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-")))


def _names(key: str) -> tuple[str, str]:
    """A panel's title and the label of its values."""
    kind, _, rest = key.partition("/")
    if kind == "metrics":
        dataset, _, metric = rest.rpartition("/")
        return dataset, f"{metric.upper()} (dB)" if "psnr" in metric.lower() else metric.upper()
    labels = {
        "losses": "unweighted loss" if rest != "l_total" else "weighted sum of losses",
        "lr": "learning rate",
        "time": "seconds per iteration",
    }
    return (f"training, {rest}", labels[kind]) if kind in labels else (key, "")


def _short(value: float) -> str:
    """An iteration: 500, 2.5k, 1M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


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

"""Measures how long exported files and networks take on this machine, in turn, and keeps the figures in one file.

python scripts/measure_latency.py exported/net_x2_onnxruntime.onnx exported/net_x2_openvino_int8.xml --size 256 256
python scripts/measure_latency.py net_g_latest.pth --runtime pytorch openvino --threads 1 2 --json latency.json
python scripts/measure_latency.py options/train/mcadkd_edsr_x2.yml --precision float32 bf16 --layout channels_last
python scripts/measure_latency.py --show latency.json phone.json

An options file stands for its network_g, untrained. docs/latency.md says how it is measured, and how figures of other
devices are put beside these.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

from basicsr.config.load import load_options
from basicsr.files.atomic_files import check_writable
from basicsr.latency.candidates import PYTORCH, Candidate, is_checkpoint
from basicsr.latency.figures import figures_table, merge, read_figures, write_figures
from basicsr.latency.measuring import ROUNDS, Limits, measure
from basicsr.runtimes.base import runtime_for, runtimes
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.process_settings import num_processors
from basicsr.utils.registry import thaw

_OF_NETWORKS = (PYTORCH, "onnxruntime", "openvino")
_OPTIONS = (".yml", ".yaml")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; raises OptionsError where values do not fit together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, known = parser.add_argument, list(runtimes())
    add("input", nargs="*", metavar="INPUT", help="exported files, checkpoints, options files")
    add("--runtime", nargs="+", choices=known, help="default: the installed one for a file's ending, else pytorch")
    add("--precision", nargs="+", choices=("float32", "bf16", "fp16"), help="to compute in; default: the file's")
    add("--layout", nargs="+", choices=("contiguous", "channels_last"), help="of tensors in PyTorch (contiguous)")
    add(
        "--size",
        type=int,
        nargs="+",
        default=[256, 256],
        metavar="N",
        help="H W, or several pairs (256 256)",
    )
    add("--threads", type=int, nargs="+", metavar="N", help=f"default: all {num_processors()} cores")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="measurements of each at most (default: %(default)s)")
    add("--seconds", type=float, default=10.0, metavar="S", help="for each, once there are three rounds (10)")
    add("--json", type=Path, metavar="FILE", help="put the figures into this file; newer ones replace older ones")
    add("--show", type=Path, nargs="+", metavar="FILE", help="print the figures of files, merged, and measure nothing")
    arguments = parser.parse_args(argv)
    if bool(arguments.input) == bool(arguments.show):
        raise OptionsError("give files or networks to measure, or --show FILE to print what was measured")
    if len(arguments.size) % 2 or min(arguments.size) < 1:
        raise OptionsError(f"--size {' '.join(map(str, arguments.size))}: give heights and widths, such as 256 256")
    arguments.threads = arguments.threads or [num_processors()]
    for option, values in (("rounds", [arguments.rounds]), ("threads", arguments.threads)):
        if min(values) < 1:
            raise OptionsError(f"--{option} {min(values)}: give 1 or more")
    if not 0 < arguments.seconds < float("inf"):
        raise OptionsError(f"--seconds {arguments.seconds}: give a number above 0")
    return arguments


def candidates_of(arguments: argparse.Namespace, folder: Path) -> Iterator[Candidate]:
    """Every input in every runtime, precision, layout, size and number of threads; graphs are written to `folder`."""
    sizes = list(zip(arguments.size[::2], arguments.size[1::2], strict=True))
    for name in dict.fromkeys(arguments.input):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"there is no file {path}: check the path")
        is_network = is_checkpoint(path) or path.suffix.lower() in _OPTIONS
        names = arguments.runtime or ([PYTORCH] if is_network else [runtime_for(path).name])
        for runtime, size, threads in product(names, sizes, arguments.threads):
            source, block = _source(path, runtime, folder) if is_network else (path, None)
            for settings in _settings(runtime, arguments):
                what = path.name, runtime, "x".join(map(str, size)), f"{threads} threads", *settings.values()
                yield Candidate(", ".join(what), source, size, threads, runtime, settings, block, path.name)


def _settings(runtime: str, arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    """What is asked of a runtime that it has a setting for."""
    layouts = arguments.layout if runtime == PYTORCH else None
    for precision, layout in product(arguments.precision or [""], layouts or [""]):
        yield {key: value for key, value in (("precision", precision), ("layout", layout)) if value}


def _source(path: Path, runtime: str, folder: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a runtime reads of a network: itself in PyTorch, else its graph; and its options block."""
    if runtime not in _OF_NETWORKS:
        raise OptionsError(
            f"{runtime} runs exported files: write one of {path.name} by scripts/export.py --target {runtime}"
        )
    from basicsr.export.graph_cache import GraphKey, make_graph, precision_of
    from basicsr.weights.recognise import load_pretrained

    checkpoint, block, precision = path, None, "float32"
    if path.suffix.lower() in _OPTIONS:
        options = load_options(str(path), training=True, paths=False)
        block = thaw(options.network_g)
        if runtime == PYTORCH:
            return block, block
        checkpoint = folder / f"{path.stem}.pth"
        if not checkpoint.exists():
            _save_untrained(block, checkpoint)
    else:
        found = load_pretrained(path)
        block = None if found.block is None else dict(found.block)
        precision = precision_of(found)
    if runtime == PYTORCH:
        return path, block
    return make_graph(GraphKey(checkpoint, precision=precision), _say).path, block


def _save_untrained(block: dict[str, Any], path: Path) -> None:
    """A checkpoint of random weights, the same each time."""
    import torch

    from basicsr.archs import build_network

    torch.manual_seed(0)
    torch.save({"params": build_network(block).state_dict(), "network": block}, path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: that of a data error where something could not be measured."""
    arguments = parse(argv)
    if arguments.show:
        print(figures_table(merge(*map(read_figures, arguments.show))))
        return 0
    if arguments.json is not None:
        check_writable(arguments.json.parent)
    known = read_figures(arguments.json) if arguments.json is not None and arguments.json.exists() else []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        candidates = list(candidates_of(arguments, Path(folder)))
        measured = measure(candidates, Limits(arguments.rounds, arguments.seconds), report=_say)
    if measured.figures:
        print(figures_table(measured.figures))
    for label, reason in measured.failed.items():
        _say(f"error: {label}: {reason}")
    if arguments.json is not None and measured.figures:
        write_figures(arguments.json, merge(known, measured.figures))
        print(f"wrote {arguments.json}")
    return DataError.exit_code if measured.failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))

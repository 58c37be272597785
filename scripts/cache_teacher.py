"""Runs a teacher once over the training images and stores its outputs, so that training needs no teacher in memory.

python scripts/cache_teacher.py -opt options/train/kd_edsr_x4.yml
python scripts/cache_teacher.py -opt options/train/kd_edsr_x4.yml --self_ensemble --output /data/edsr_x4_outputs

Teacher, scale and images are those of the training options. Training reads the outputs where its options say
`datasets: train: teacher_cache: FOLDER`. Where the options name no LR images, they are made of the HR images as
training makes them. What is broken off goes on by the same command. docs/teacher_cache.md tells what is
stored, and for which methods it is enough.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command
from basicsr.utils.process_settings import shorten_spinning

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds
    shorten_spinning()

from tqdm import tqdm

from basicsr.config.load import load_options, no_warning
from basicsr.config.schema import Options
from basicsr.engine.teacher_cache import CacheSettings, CacheSummary, make_cache
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import choose_device
from basicsr.utils.text import readable

_LEAST_TILE = 8  # smaller ones are mostly context


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; raises OptionsError where a value is out of its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-opt", "--opt", required=True, metavar="FILE", help="training options (YAML)")
    add("--dataset", metavar="KEY", help="of several training sets the one to run over, as train_2 (default: each)")
    add("--output", metavar="DIR", help="folder of the outputs (default: teacher_cache, else beside the HR images)")
    add("--self_ensemble", action="store_true", help="average over eight flips and rotations: better, 8 times as slow")
    add("--amp", default="none", choices=("none", "bf16", "fp16", "auto"), help="none is float32 (default)")
    add("--tile", type=int, metavar="N", help="side of a tile, LR pixels (default: images whole while memory lasts)")
    add("--tile_overlap", type=int, metavar="N", help="pixels seen around a tile (default: what the network needs)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--force_yml", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="set options, as in train.py")
    arguments = parser.parse_args(argv)
    if arguments.tile is not None and arguments.tile < _LEAST_TILE:
        raise OptionsError(f"--tile {arguments.tile}: give {_LEAST_TILE} or more, or leave it out")
    if (arguments.tile_overlap or 0) < 0:
        raise OptionsError(f"--tile_overlap {arguments.tile_overlap}: give 0 or more")
    return arguments


def load(file: str, overrides: Sequence[str]) -> tuple[Options, dict[str, str]]:
    """The options as they are without caches, and the folders of the caches that they name, by the set's key."""
    named = load_options(file, overrides=overrides, training=True, paths=False, warn=no_warning).teacher_caches
    without = [f"datasets:{key}:teacher_cache=~" for key in named]
    options = load_options(file, overrides=[*overrides, *without], training=True)
    if options.model_type != "KDModel" or options.path.pretrain_network_t is None:
        raise OptionsError(f"{file}: a cache is of a trained teacher: give network_t and path: pretrain_network_t")
    return options, named


def chosen_sets(options: Options, arguments: argparse.Namespace) -> list[str]:
    """The training sets to run over; raises OptionsError where one is not there, or several would share a folder."""
    there = list(options.datasets_of("train"))
    if arguments.dataset is None:
        if arguments.output is not None and len(there) > 1:
            raise OptionsError(f"--output is of one set, and there are {', '.join(there)}; choose one by --dataset")
        return there
    if arguments.dataset not in there:
        raise OptionsError(f"--dataset {arguments.dataset}: there are {', '.join(there)}")
    return [arguments.dataset]


def say(line: str) -> None:
    """Prints a line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def tell(made: CacheSummary, key: str) -> None:
    """What is there now, and how to use it."""
    share = f"{made.clipped:,d} of {made.values:,d} values ({made.clipped / made.values:.2g} of all)"
    new = "all made now" if made.new == made.images else f"{made.new:,d} made now, the others were there"
    say(f"{made.images:,d} outputs, {new if made.new else 'all were there'}, {readable(made.bytes)}")
    say(f"clipped to [-0.5, 1.5]: {share if made.clipped else 'none'}")
    say(f"to train with them, set datasets: {key}: teacher_cache: {made.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    options, named = load(arguments.opt, arguments.force_yml)
    how = CacheSettings(
        choose_device(arguments.device),
        self_ensemble=arguments.self_ensemble,
        amp=arguments.amp,
        tile=arguments.tile,
        tile_overlap=arguments.tile_overlap,
    )
    for key in chosen_sets(options, arguments):
        folder = arguments.output or named.get(key)
        tell(make_cache(options, how, Path(folder) if folder is not None else None, say, dataset=key), key)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

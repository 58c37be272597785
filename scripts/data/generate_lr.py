"""Makes LR images by MATLAB's bicubic `imresize`, one folder to a scale: X2/0001x2.png, X3/0001x3.png ...

    python scripts/data/generate_lr.py --input datasets/DIV2K/DIV2K_train_HR \
        --output datasets/DIV2K/DIV2K_train_LR_bicubic --scales 2 3 4

HR images are cut below and right to a multiple of the scale first. Training needs HR images of exactly scale
times the LR size: where yours are not, `--hr-output` writes them cut to a common multiple of all scales;
train on those. Images that are there already are left as they are, so that an interrupted run goes on where
it was; those of files that have changed since are made again. Several folders may go into one, but for files of
one name. Images that cannot be read or are too small are told together at the end.

Results lie in folders as their sources do: family/2024/a.jpg gives X3/family/2024/ax3.png. With `--flat` all come into
one folder, and the names of folders into theirs: X3/family_2024_ax3.png. Of several folders, what tells them apart
comes before: DIV2K/0001x3.png of DIV2K/HR, Flickr2K/0001x3.png of Flickr2K/HR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import dataset_tools
import numpy as np

from basicsr.data.storage import stamp_of
from basicsr.data.transforms import mod_crop
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.matlab_functions import imresize, imresize_integer

Rounding = Literal["each_pass", "once"]


@dataclass(frozen=True)
class Task:
    """One HR image and what to make of it."""

    source: Path
    lr_by_scale: dict[int, Path]
    cropped: Path | None
    rounding: Rounding
    changed: bool
    channels: int | None = None  # of images of several bands

    @property
    def outputs(self) -> list[Path]:
        """All files to write."""
        return [*self.lr_by_scale.values(), *([self.cropped] if self.cropped else [])]


class Outcome(NamedTuple):
    """What became of an image: whether there was anything to do, whether HR pixels are left over, and what is wrong."""

    made: bool
    left_over: bool = False
    problem: str | None = None


class Sources:
    """A hidden file in the output folder that says of which file each image was made, a line each, the last one counts.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".generate_lr_sources.jsonl"
        self._known: dict[str, tuple[str, list[int]]] = {}
        for line in self._file.read_text("utf-8").splitlines() if self._file.is_file() else ():
            with contextlib.suppress(ValueError, TypeError):  # a line that a kill cut off
                stem, path, stamp = json.loads(line)
                self._known[stem] = path, stamp

    def changed(self, stem: str, source: Path) -> bool:
        """Whether the images of this name were made of something else than the source as it is now.

        Raises:
            DataError: of another file, which is still there.
        """
        path, stamp = self._known.get(stem, ("", None))
        if stamp is None or stamp == list(stamp_of(source) or ()):
            return False
        if path != os.path.realpath(source) and Path(path).exists():
            raise DataError(
                f"{source} would be called {stem}, as what was made of {path} before; rename one, or give another"
                " --output and --hr-output"
            )
        return True

    def note(self, stem: str, source: Path) -> None:
        """Notes of which file the images of this name are made."""
        line = (os.path.realpath(source), list(stamp_of(source) or ()))
        if self._known.get(stem) != line:
            try:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([stem, *line]) + "\n")
            except OSError as error:
                raise DataError(f"cannot write {self._file}: {error.strerror}") from error


def make(task: Task) -> Outcome:
    """Writes an image's outputs."""
    if not task.changed and dataset_tools.is_current(task.outputs, task.source):
        return Outcome(made=False)
    try:
        img = dataset_tools.read_image(task.source, task.channels)
    except DataError as error:
        return Outcome(made=False, problem=str(error))
    multiple = math.lcm(*task.lr_by_scale)
    height, width = img.shape[:2]
    if min(height, width) < multiple:
        return Outcome(False, problem=f"{task.source} of {height}x{width} is too small for these scales; remove it")
    if task.cropped is not None:
        img = mod_crop(img, multiple)
        dataset_tools.write_image(img, task.cropped, task.channels)
    for scale, path in task.lr_by_scale.items():
        hr = mod_crop(img, scale)
        if hr.dtype == np.float32:  # which only bands are
            lr = imresize(hr, 1 / scale).clip(0, 1)
        else:
            lr = imresize_integer(hr, 1 / scale, task.rounding)
        dataset_tools.write_image(lr, path, task.channels)
    rests = [side % scale for side in (height, width) for scale in task.lr_by_scale]
    return Outcome(True, left_over=task.cropped is None and any(rests))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parse(argv)
    if 1 in options.scales:
        raise OptionsError("--scales 1 would make copies; inputs at scale 1, such as blurred ones, come with their set")
    images = dataset_tools.images_of(options.input, options.meta_info, options.channels)
    sources = dataset_tools.by_name(images)
    if options.flat:
        sources = flat(sources)
    multiple = math.lcm(*options.scales)
    hr: Path | None = options.hr_output
    if hr is None and options.flat:
        raise OptionsError("--flat needs --hr-output, which brings the HR images of all folders into one")
    dataset_tools.check_apart(images, options.output, "--output", below=False)  # LR images below are left out
    if hr is not None:
        dataset_tools.check_apart(images, hr, "--hr-output")
    noted = Sources(options.output)
    changed = {stem: noted.changed(stem, source) for stem, source in sources.items()}
    for scale in options.scales:
        cut = multiple if hr is not None else scale
        parameters = {"scale": scale, "hr_multiple": cut, "rounding": options.rounding}
        parameters |= {"channels": options.channels} if options.channels is not None else {}
        dataset_tools.claim_folder(options.output / f"X{scale}", "generate_lr", parameters)
    if hr is not None:
        dataset_tools.claim_folder(hr, "generate_lr", {"hr_multiple": multiple})

    endings = {stem: dataset_tools.ending_of(source, options.channels) for stem, source in sources.items()}
    tasks = [
        Task(
            source=source,
            lr_by_scale={
                scale: options.output / f"X{scale}" / f"{stem}x{scale}{endings[stem]}" for scale in options.scales
            },
            cropped=hr / f"{stem}{endings[stem]}" if hr is not None else None,
            rounding=options.rounding,
            changed=changed[stem],
            channels=options.channels,
        )
        for stem, source in sources.items()
    ]
    dataset_tools.warn_of(images)
    outcomes = []
    for stem, outcome in zip(
        sources, dataset_tools.in_processes(make, tasks, options.workers, "LR images"), strict=True
    ):
        outcomes.append(outcome)
        if outcome.problem is None:
            noted.note(stem, sources[stem])
    if problems := [outcome.problem for outcome in outcomes if outcome.problem is not None]:
        raise DataError("\n".join(problems))
    made = sum(outcome.made for outcome in outcomes)
    print(f"{options.output}: {dataset_tools.made(made, len(tasks), 'image')}")
    if hr is not None:
        scale = options.scales[0]
        lr = f"dataroot_lq: {options.output}/X{scale}, filename_tmpl: '{{}}x{scale}'"
        bands = f", io_backend: {{type: bands, channels: {options.channels}}}" if options.channels is not None else ""
        print(f"in the options: dataroot_gt: {hr}, {lr}{bands}")
    elif count := sum(outcome.left_over for outcome in outcomes):
        print(f"sides of {count} HR images are no multiple of the scale: for training, give --hr-output as well")
    return 0


def flat(sources: Mapping[str, Path]) -> dict[str, Path]:
    """The images with the names of their folders in theirs: family_2024_a; DataError where two are called so."""
    found: dict[str, Path] = {}
    for name, source in sources.items():
        stem = name.replace("/", "_")
        if (other := found.setdefault(stem, source)) is not source:
            raise DataError(f"{other} and {source} would both be called {stem}; rename one")
    return found


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset_tools.add_input_option(parser.add_argument, "HR images", required=True)
    parser.add_argument(
        "--flat", "--recursive", action="store_true", help="all results in one folder (with --hr-output)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets the folders X2, X3 ...")
    parser.add_argument("--scales", type=dataset_tools.positive, nargs="+", default=[2, 3, 4], metavar="S")
    parser.add_argument("--hr-output", type=Path, metavar="DIR", help="gets the HR images, cut")
    parser.add_argument(
        "--rounding",
        choices=("each_pass", "once"),
        default="each_pass",
        help="each_pass: as MATLAB resizes uint8 images (default); once: as it resizes im2double(image)",
    )
    dataset_tools.add_channels_option(parser.add_argument)
    dataset_tools.add_workers_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))

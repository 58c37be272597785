"""Makes LR images by MATLAB's bicubic `imresize`, one folder to a scale: X2/0001x2.png, X3/0001x3.png ...

    python scripts/data/generate_lr.py --input datasets/DIV2K/DIV2K_train_HR \
        --output datasets/DIV2K/DIV2K_train_LR_bicubic --scales 2 3 4

HR images are cut below and right to a multiple of the scale first. Training needs HR images of exactly scale
times the LR size: where yours are not, `--hr-output` writes them cut to a common multiple of all scales;
train on those. Images that are there already are left as they are, so that an interrupted run goes on where
it was.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dataset_tools

from basicsr.data.data_util import images_by_stem
from basicsr.data.transforms import mod_crop
from basicsr.utils.errors import DataError
from basicsr.utils.img_util import imwrite
from basicsr.utils.matlab_functions import imresize_integer

Rounding = Literal["each_pass", "once"]


@dataclass(frozen=True)
class Task:
    """One HR image and what to make of it."""

    source: Path
    lr_by_scale: dict[int, Path]
    cropped: Path | None
    rounding: Rounding

    @property
    def outputs(self) -> list[Path]:
        """All files to write."""
        return [*self.lr_by_scale.values(), *([self.cropped] if self.cropped else [])]


def make(task: Task) -> bool:
    """Writes an image's outputs; returns whether there was anything to do."""
    if dataset_tools.is_current(task.outputs, task.source):
        return False
    img = dataset_tools.read_image(task.source)
    multiple = math.lcm(*task.lr_by_scale)
    if min(img.shape[:2]) < multiple:
        raise DataError(f"{task.source} of {img.shape[0]}x{img.shape[1]} is too small for these scales; remove it")
    if task.cropped is not None:
        img = mod_crop(img, multiple)
        imwrite(img, task.cropped)
    for scale, path in task.lr_by_scale.items():
        imwrite(imresize_integer(mod_crop(img, scale), 1 / scale, task.rounding), path)
    return True


def main() -> int:
    """The command."""
    options = _parse()
    stems = images_by_stem(str(options.input))
    multiple = math.lcm(*options.scales)
    for scale in options.scales:
        cut = multiple if options.hr_output else scale
        parameters = {"scale": scale, "hr_multiple": cut, "rounding": options.rounding}
        dataset_tools.claim_folder(options.output / f"X{scale}", "generate_lr", parameters)
    if options.hr_output:
        if options.hr_output.resolve() == options.input.resolve():
            raise DataError(f"--hr-output must not be the folder of --input, {options.input}; name another")
        dataset_tools.claim_folder(options.hr_output, "generate_lr", {"hr_multiple": multiple})
    tasks = [
        Task(
            source=options.input / name,
            lr_by_scale={scale: options.output / f"X{scale}" / f"{stem}x{scale}.png" for scale in options.scales},
            cropped=options.hr_output / f"{stem}.png" if options.hr_output else None,
            rounding=options.rounding,
        )
        for stem, name in stems.items()
    ]
    made = sum(dataset_tools.in_processes(make, tasks, options.workers, "LR images"))
    print(f"{options.output}: made {made} of {len(tasks)} images, the others were there")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="HR images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets the folders X2, X3 ...")
    parser.add_argument("--scales", type=dataset_tools.positive, nargs="+", default=[2, 3, 4], metavar="S")
    parser.add_argument("--hr-output", type=Path, metavar="DIR", help="gets the HR images, cut")
    parser.add_argument(
        "--rounding",
        choices=("each_pass", "once"),
        default="each_pass",
        help="each_pass: as MATLAB resizes uint8 images (default); once: as it resizes im2double(image)",
    )
    dataset_tools.add_workers_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))

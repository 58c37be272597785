"""A small x2 dataset of the photographs that lie in scikit-image's wheel: nothing is downloaded.

    python scripts/quickstart/photographs.py [--output datasets/quickstart]

Leaves train/HR, train/LR_bicubic/X2, val/HR, val/LR_bicubic/X2 and manifest.json, which lists every file's SHA-256.
A dataset that is there already and intact is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import numpy as np

from basicsr.data.transforms import mod_crop
from basicsr.engine.run_folder import archive, check_archivable
from basicsr.files.images import imfrombytes, imwrite
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.matlab_functions import imresize_integer

SCALE = 2
# The two motorcycles are a stereo pair, nearly one picture: they must stay on one side.
TRAINING = (
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
)
VALIDATION = ("astronaut.png", "chelsea.png", "coffee.png")
# Small files decode fast: a patch is cut from one of these squares, not from a whole photograph.
TILE = 128
MANIFEST = "manifest.json"


def photographs_folder() -> Path:
    """Where scikit-image keeps its photographs.

    Raises:
        MachineError: scikit-image is not installed.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise MachineError("scikit-image, whose photographs are the data, is not installed; run: bash install.sh")
    return Path(package.submodule_search_locations[0]) / "data"


def ensure_dataset(output: Path, photographs: Path) -> bool:
    """Makes the dataset unless it is there; returns whether there was anything to do.

    Args:
        output: its folder. One that is damaged is renamed; one that holds something else is left alone.
        photographs: folder of the pictures named in TRAINING and VALIDATION.

    Raises:
        OptionsError: the folder holds something else.
        DataError: a photograph is missing or the files cannot be written.
    """
    if _is_intact(output):
        return False
    check_archivable(output, (MANIFEST,))
    partial = output.with_name(f"{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path, image in _images(photographs):
            imwrite(image, partial / path)
        (partial / MANIFEST).write_text(json.dumps(_manifest(partial), indent=1), "utf-8")
        archive(output, (MANIFEST,))
        partial.rename(output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}") from error
    return True


def _images(photographs: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Path and pixels, uint8 (H, W, 3) BGR, of every image of the dataset."""
    for name in TRAINING:
        hr = _read(photographs / name)
        lr = imresize_integer(hr, 1 / SCALE)
        corners = product(range(0, hr.shape[0] - TILE + 1, TILE), range(0, hr.shape[1] - TILE + 1, TILE))
        for number, (top, left) in enumerate(corners, 1):
            tiles = _square(hr, top, left, TILE), _square(lr, top // SCALE, left // SCALE, TILE // SCALE)
            yield from _pair("train", f"{Path(name).stem}_s{number:03d}", *tiles)
    for name in VALIDATION:
        hr = _read(photographs / name)
        yield from _pair("val", Path(name).stem, hr, imresize_integer(hr, 1 / SCALE))


def _pair(phase: str, stem: str, hr: np.ndarray, lr: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{phase}/HR/{stem}.png", hr
    yield f"{phase}/LR_bicubic/X{SCALE}/{stem}x{SCALE}.png", lr


def _square(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _read(path: Path) -> np.ndarray:
    """A photograph, uint8 (H, W, 3) BGR, H and W multiples of the scale."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"scikit-image's photograph {path} cannot be read ({error.strerror}); install scikit-image 0.22 or later"
        ) from error
    return mod_crop(imfrombytes(content, source=str(path)), SCALE)


def _manifest(folder: Path) -> dict[str, Any]:
    """What the dataset is made from, and the SHA-256 of every image."""
    files = sorted(folder.rglob("*.png"))
    return {
        "photographs": {"train": TRAINING, "val": VALIDATION},
        "scale": SCALE,
        "tile": TILE,
        "files": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def _is_intact(folder: Path) -> bool:
    try:
        noted = json.loads(read_regular(folder / MANIFEST))
    except (OSError, ValueError):
        return False
    return bool(noted == json.loads(json.dumps(_manifest(folder))))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("datasets/quickstart"), metavar="DIR")
    output = parser.parse_args(argv).output
    made = ensure_dataset(output, photographs_folder())
    count = {phase: len(list((output / phase / "HR").iterdir())) for phase in ("train", "val")}
    print(
        f"{output}: {count['train']} training and {count['val']} validation images{'' if made else ', there already'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

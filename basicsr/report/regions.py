"""Chooses the squares of images that the visual comparison shows.

Where the networks differ most: for each square of an image, the mean squared error of each network in it is taken,
then the standard deviation of these errors over the networks. It is multiplied by s / (s + 8), s being the standard
deviation of the HR image's luma in the square, because a difference in a plain area cannot be seen. A border of `scale`
pixels is left out, as in the metrics. Bicubic interpolation, from which all networks differ, is compared only where
there is one network beside it; one network alone is shown where its error is largest. Each image gives one square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from basicsr.config.schema import Region
from basicsr.config.yaml_files import dump_yaml
from basicsr.metrics.metric_util import to_y_channel
from basicsr.report.pictures import SavedPictures
from basicsr.report.results import ScaleResults
from basicsr.report.tables import write_text
from basicsr.utils.errors import DataError

LEAST_SIDE = 8
_SIZES = (128, 96, 64, 48)  # divide a cell of 384 pixels
_VISIBLE_STRUCTURE = 8.0
_AS_GOOD_AS_EQUAL = 100.0  # dB


def images_that_differ(scale: ScaleResults, better: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Datasets and names of images: largest difference of the first metric between networks, or worst figure, first."""
    rows = scale.compared()
    spreads: dict[tuple[str, str], float] = {}
    for dataset in scale.datasets():
        evaluations = [row.evaluations[dataset] for row in rows if dataset in row.evaluations]
        if not evaluations or not evaluations[0].metrics:
            continue
        values = np.stack([evaluation.values[:, 0] for evaluation in evaluations])
        values = np.nan_to_num(values, nan=0.0, posinf=_AS_GOOD_AS_EQUAL)
        lower = (better or {}).get(evaluations[0].metrics[0]) == "lower"
        spread = values.std(0) if len(evaluations) > 1 else values[0] if lower else -values[0]
        keys = [(dataset, image) for image in evaluations[0].images]
        spreads |= dict(zip(keys, spread.tolist(), strict=True))
    return sorted(spreads, key=lambda key: -spreads[key])


def choose_regions(
    pictures: SavedPictures, names: Sequence[str], images: Sequence[tuple[str, str]], count: int, *, scale: int
) -> list[Region]:
    """The squares in which the networks called `names` differ most, at most one of each image that has HR."""
    scored: list[tuple[float, Region]] = []
    for dataset, image in images:
        hr = pictures.hr(dataset, image)
        if hr is None or (size := square_size(hr, scale)) < LEAST_SIDE:
            continue
        outputs = [load_output(pictures, name, dataset, image, hr.shape[:2], scale) for name in names]
        x, y, score = most_different_square(hr, outputs, size, border=scale)
        short = without_scale(image, scale, pictures.names(dataset))
        scored.append((score, Region(dataset=dataset, image=short, x=x, y=y, size=size)))
    scored.sort(key=lambda entry: -entry[0])
    return [region for _, region in scored[:count]]


def load_output(
    pictures: SavedPictures, name: str, dataset: str, image: str, size: tuple[int, ...], scale: int
) -> np.ndarray:
    """What the network `name` made of an image; raises DataError unless its height and width are `size`."""
    output = pictures.output(name, dataset, image)
    if output.shape[:2] != size:
        raise DataError(
            f"{name} made {dataset}'s {image} {size_text(output)} pixels large, not {size[1]} x {size[0]};"
            f" were both made at x{scale}?"
        )
    return output


def square_size(hr: np.ndarray, border: int) -> int:
    """Side of the square to cut from an image: about a quarter of its shorter side, 48 to 128 pixels if it has them."""
    shorter = min(hr.shape[:2])
    return min(next((size for size in _SIZES if size <= shorter / 4), _SIZES[-1]), shorter - 2 * border)


def most_different_square(
    hr: np.ndarray, outputs: Sequence[np.ndarray], size: int, *, border: int
) -> tuple[int, int, float]:
    """Left edge, upper edge and score of the square in which the outputs differ most; see the module's docstring."""
    if min(hr.shape[:2]) < size + 2 * border:
        raise DataError(
            f"an image of {size_text(hr)} pixels has no square of {size} pixels {border} off the border; it must be"
            f" at least {size + 2 * border} a side"
        )
    inner = slice(border, hr.shape[0] - border), slice(border, hr.shape[1] - border)
    truth = hr[inner].astype(np.float64)
    errors = np.stack([_means(((output[inner] - truth) ** 2).mean(2), size) for output in outputs])
    luma = to_y_channel(hr[inner])[..., 0].astype(np.float64)
    deviation = np.sqrt(np.clip(_means(luma**2, size) - _means(luma, size) ** 2, 0, None))
    difference = errors.std(0) if len(outputs) > 1 else errors[0]
    score = difference * deviation / (deviation + _VISIBLE_STRUCTURE)
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    return int(x) + border, int(y) + border, float(score[y, x])


def image_name(region: Region, names: Sequence[str], scale: int) -> str:
    """The image of a region; LR files' names may end in the scale, as in babyx2. Raises DataError if there is none."""
    for name in (region.image, f"{region.image}x{scale}"):
        if name in names:
            return name
    known = ", ".join(without_scale(name, scale, names) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(f"report: regions: {region.dataset} has no image '{region.image}' at x{scale}; it has {known}")


def without_scale(image: str, scale: int, names: Sequence[str]) -> str:
    """An image's name without a scale at its end: babyx2 is baby, unless that is another of the dataset's `names`."""
    short = image.removesuffix(f"x{scale}") or image
    return image if short in names else short


def write_regions(path: Path, regions: Sequence[Region]) -> None:
    """Writes the regions as options (YAML), from which the same comparison is drawn again."""
    write_text(path, dump_yaml({"report": {"regions": [region.to_data() for region in regions]}}))


def size_text(image: np.ndarray) -> str:
    """Width and height of an image: 120 x 90."""
    return f"{image.shape[1]} x {image.shape[0]}"


def _means(values: np.ndarray, size: int) -> np.ndarray:
    """Mean of every square of a map (H, W): (H - size + 1, W - size + 1)."""
    total = cv2.integral(values, sdepth=cv2.CV_64F)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return sums / size**2

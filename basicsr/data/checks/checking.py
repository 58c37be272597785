"""Checks all images of a dataset before a run, so that a bad one is found now and not in the night.

By default only headers and the ends of files are read: that finds files that are empty, truncated, no images, of
pixels or sizes that are not read, too small for a patch, and pairs that do not fit. What it cannot find is damage
amid the compressed pixels; `check_images: full` decodes everything for that.

A few pairs are also compared by their pixels, whether LR shows what HR shows, at the same place. Both are compared
where the LR image has most detail: the HR image, averaged over squares of scale x scale pixels, is held against it at
every shift of a few HR pixels. An LR image that fits better by `LEAST_GAIN` where it is shifted is out of step; as one
of other contents counts whose coarse brightness correlates by less than `LEAST_CORRELATION`. Blur, noise and
compression make every shift fit worse alike, and are no cause. Images without detail tell nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from basicsr.data.checks.inspection import Inspection, examine
from basicsr.data.checks.notes import Bar, in_tasks, results_with_notes
from basicsr.data.data_util import count_mismatch, first_few, set_name
from basicsr.data.loading import prepare_worker
from basicsr.data.storage import ImageRoot, StoredImages, stored_images
from basicsr.data.transforms import check_depths, check_hr_patch_fits, check_patches_fit, check_whole_pair
from basicsr.files.image_headers import ImageHeader
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.matlab_functions import imresize_integer
from basicsr.utils.process_settings import num_processors
from basicsr.utils.text import printable

if TYPE_CHECKING:
    from basicsr.config.schema import DatasetOptions

_SHOWN = 20
_DETAILS = re.compile(r"\d[\d,.]*")
_SECONDS_WITHOUT_BAR = 1.5
_LONGEST_FAULT = 500

LEAST_GAIN = 2.0  # dB
LEAST_CORRELATION = 0.5
EQUAL = "LR is equal to HR, so there is nothing to learn; check which folders are paired"
_LOOKED_AT = 8  # pairs, where not all are
_LEAST_SHIFT = 4  # HR pixels that are looked at in every direction, and the scale where that is more
_LARGEST_WINDOW = 64  # LR pixels a side
_SMALLEST_WINDOW = 8
_CONTEXT = 4  # LR pixels that bicubic interpolation sees beyond a window
_COARSE = 16  # pixels a side of what is correlated
_LEAST_SPREAD = 4.0  # gray levels of 255: the standard deviation below which nothing can be told


@dataclass(frozen=True, order=True)
class BadImage:
    """An image of sample `index` that cannot be used; `pair` names both images where only the pair is wrong."""

    index: int
    path: str
    reason: str
    pair: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check_images(
    dataset: Any, options: DatasetOptions, *, rank: int = 0, world_size: int = 1, processes: int | None = None
) -> list[BadImage]:
    """Checks the images of every world-size-th sample as `check_images` says; keeps results for the next start."""
    stored = stored_images(dataset)
    if options.check_images == "none" or stored is None:
        return []
    indices = range(rank, len(stored), world_size)
    decode, shown = options.check_images == "full", rank == 0 and sys.stderr.isatty()
    inspections: dict[str, list[Inspection]] = {}
    for role, files in stored.files.items():
        root, names = stored.roots[role], [files[index] for index in indices]
        bar = partial(progress, f"Checking {options.name} ({role})", shown)
        look = partial(_look, root, decode, processes, bar)
        to_note, from_note = partial(_note, decode), partial(_noted, decode)
        found = results_with_notes(root.kind, root, names, look, to_note, from_note, rank, world_size)
        shapes = root.shapes()
        for number, name in enumerate(names):
            header, shape = found[number].header, shapes.get(name)
            if header is not None and shape is not None and sorted(header.size) != sorted(shape[:2]):
                found[number] = Inspection(
                    f"meta_info.txt says {shape[0]}x{shape[1]}, the image is {header.height}x{header.width}; create the"
                    " LMDB database again"
                )
        inspections[role] = found
    return [
        bad
        for number, index in enumerate(indices)
        for bad in _judge(stored, index, {role: found[number] for role, found in inspections.items()})
    ]


def dataset_warnings(name: str, stored: StoredImages, phase: str) -> list[str]:
    """What lies beside a dataset's images, and whether their number is not that of the known set of this name."""
    roots = {stored.roots[role].path: stored.roots[role] for role in stored.files}
    names, warnings = [(name, len(stored))] if phase != "train" else [], list[str]()
    if not stored.chosen:
        counts = [share.count for share in stored.shares] or [len(stored)]
        names += [found for root in roots.values() for found in zip(map(set_name, root.folders), counts, strict=False)]
        warnings += chain.from_iterable(root.warnings(len(stored)) for root in roots.values())
    mismatch = next(filter(None, (count_mismatch(*named) for named in names)), None)
    return [*warnings, f"{name}: {mismatch}"] if mismatch else warnings


def report(bad: Sequence[BadImage], total: int, name: str) -> str:
    """The message about bad images, at least one, of a dataset of `total` samples called `name`."""
    lines = [f"{len({image.index for image in bad})} of {total} images of dataset {name} cannot be used:"]
    lines += [f"  {line}" for line in grouped([(str(image), image.pair) for image in sorted(bad)])]
    lines.append(
        "Copy, convert or remove these files and start again; in training, skip_bad_images: N goes on without up to N"
        " of them"
    )
    return "\n".join(lines)


def grouped(faults: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Up to twenty lines about faults (text, names of a pair); pairs that fail for one reason are counted in one."""
    kinds: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for text, pair in faults:
        kind = text
        for name in pair:
            kind = kind.replace(name, "")
        kinds.setdefault(_DETAILS.sub("#", kind) if pair else text, []).append((text, pair))
    lines = []
    for alike in list(kinds.values())[:_SHOWN]:
        lines.append(printable(alike[0][0]))
        if others := [os.path.basename(pair[0]) if pair else text for text, pair in alike[1:]]:
            what = f"{len(others)} more {'pairs' if len(alike[0][1]) > 1 else 'images'} like it"
            lines.append(f"  and {what} ({first_few(others)}), as where one setting is wrong")
    if more := sum(map(len, list(kinds.values())[_SHOWN:])):
        lines.append(f"and {more} more")
    return lines


def progress(description: str, shown: bool, items: Iterator[Any], total: int) -> Iterator[Any]:
    """The items; where `shown`, a progress bar counts them if it takes longer."""
    looks: dict[str, Any] = {"unit": "image", "leave": False, "dynamic_ncols": True, "delay": _SECONDS_WITHOUT_BAR}
    return iter(tqdm(items, description, total, disable=not shown, **looks))


def _look(
    root: ImageRoot, decode: bool, processes: int | None, bar: Bar, pool: Executor, names: list[str]
) -> Iterable[Inspection]:
    if not decode or not names:
        return bar(in_tasks(pool, partial(examine, root=root), names), len(names))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    prepare = partial(prepare_worker, 0, os.getpid())
    if processes is None:  # this rank's share of the cores
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
        processes = max(num_processors() // (int(ranks) if ranks.isdigit() and int(ranks) else 1), 1)
    processing = ProcessPoolExecutor(min(processes, len(names)), context, initializer=prepare)
    found: list[Inspection] = []
    try:
        tasks = in_tasks(processing, partial(examine, root=root, decode=True), names, size=2)
        for inspection in bar(tasks, len(names)):
            found.append(inspection)
    except BrokenProcessPool as error:
        raise MachineError(
            f"a process was killed while it decoded {root.label(names[len(found)])} or one of the next images, maybe"
            " for lack of memory; set check_images: headers, or free memory"
        ) from error
    finally:
        processing.shutdown(wait=True, cancel_futures=True)
    return found


def _note(decoded: bool, found: Inspection) -> list[Any]:
    header = found.header
    fields = header and [header.format, header.height, header.width, header.channels, header.bits, header.space]
    return [decoded, found.fault, fields, found.colourful]


def _noted(decode: bool, note: list[Any]) -> Inspection | None:
    """The inspection of a note; None where it makes no sense, or only headers were read and that is not enough."""
    decoded, fault, header, colourful = note
    if decode and not decoded:
        return None
    if isinstance(fault, str) and fault:
        return Inspection(printable(fault[:_LONGEST_FAULT]))
    kind, height, width, channels, bits, space = header
    numbers = all(type(number) is int and 0 < number < 2**31 for number in (height, width, channels, bits))
    if fault is not None or not numbers or not isinstance(kind, str) or not isinstance(space, str):
        return None
    if colourful is not None and not isinstance(colourful, bool):
        return None
    return Inspection(None, ImageHeader(kind, height, width, channels, bits, space), colourful)


def _judge(stored: StoredImages, index: int, found: dict[str, Inspection]) -> list[BadImage]:
    """What is wrong with a sample: with its images each alone, or else with the pair."""
    labels = {role: stored.label(role, index) for role in found}
    if bad := [BadImage(index, labels[role], one.fault) for role, one in found.items() if one.fault]:
        return bad
    if "lq" not in found:
        return _judge_alone(stored, index, found["gt"])
    lq = found["lq"].header
    assert lq is not None
    if "gt" not in found:
        try:
            check_patches_fit(None, lq.size, stored.gt_patch_size, stored.scale, None, labels["lq"])
        except DataError as error:
            return [BadImage(index, labels["lq"], str(error), (labels["lq"],))]
        return []
    gt = found["gt"].header
    assert gt is not None
    names = labels["gt"], labels["lq"]
    try:
        check_depths(gt.depth, lq.depth, *names)
        for header, other, name in ((gt, found["lq"], names[1]), (lq, found["gt"], names[0])):
            if header.space == "gray" and other.colourful:
                raise DataError(f"is gray, but {name} is in colour; convert one of them")
        if stored.exact:
            check_patches_fit(gt.size, lq.size, stored.gt_patch_size, stored.scale, *names, stored.roots["gt"].given)
        else:
            check_whole_pair(gt.size, lq.size, stored.scale, *names, stored.roots["gt"].given)
    except DataError as error:
        return [BadImage(index, names[0], str(error), tuple(labels.values()))]
    return []


def _judge_alone(stored: StoredImages, index: int, found: Inspection) -> list[BadImage]:
    """What is wrong with an HR image of which LR is made."""
    assert found.header is not None
    name, scale = stored.label("gt", index), stored.scale
    size = found.header.height // scale * scale, found.header.width // scale * scale
    try:
        check_hr_patch_fits(size, stored.gt_patch_size or scale, name)
    except DataError as error:
        return [BadImage(index, name, str(error), (name,))]
    return []


def find_misalignment(hr: np.ndarray, lr: np.ndarray, scale: int) -> str | None:
    """How LR and HR, (H, W, C), BGR or bands, do not belong together; None where they do, or it is unclear.

    It is unclear where H and W are less than `scale` times those of LR, or where there is no detail.
    """
    height, width = lr.shape[:2]
    large, small = _gray(hr[: height * scale, : width * scale]), _gray(lr)
    if min(height, width) < _SMALLEST_WINDOW or large.shape != (height * scale, width * scale):
        return None
    cells = min(_COARSE, min(height, width) // 2)
    rows, columns = height // cells * cells, width // cells * cells  # OpenCV is fast where cells are of whole pixels
    coarse = [
        cv2.resize(image[: rows * factor, : columns * factor], (cells, cells), interpolation=cv2.INTER_AREA)
        for image, factor in ((large, scale), (small, 1))
    ]
    if min(float(image.std()) for image in coarse) >= _LEAST_SPREAD:
        correlation = float(np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1])
        if correlation < LEAST_CORRELATION:
            return f"LR shows something else than HR (correlation {correlation:.2f}); check which images are paired"
    reach = max(scale, _LEAST_SHIFT)
    margin = math.ceil(reach / scale) + _CONTEXT
    top, left, side = _window(small, margin)
    target = small[top : top + side, left : left + side]
    if side < _SMALLEST_WINDOW or target.std() < _LEAST_SPREAD / 4:
        return None
    y, x = top * scale - reach, left * scale - reach
    length = (side + 1) * scale + 2 * reach
    means = cv2.boxFilter(
        large[y : y + length, x : x + length], -1, (scale, scale), anchor=(0, 0), borderType=cv2.BORDER_REFLECT
    )
    errors: dict[tuple[int, int], float] = {}
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            shifted = means[down : down + side * scale : scale, right : right + side * scale : scale]
            difference = shifted - target
            errors[down - reach, right - reach] = float(np.vdot(difference, difference))
    best = min(errors, key=errors.__getitem__)
    if best == (0, 0):
        return None
    before, after = (_psnr(large, target, scale, top, left, shift) for shift in ((0, 0), best))
    if after - before < LEAST_GAIN:
        return None
    return (
        f"LR is out of step with HR: it fits {after - before:.1f} dB better ({after:.1f} for {before:.1f}) where HR is"
        f" moved by {best[0]} rows and {best[1]} columns; cut both together (scripts/data/extract_subimages.py"
        " --lr-input), or make LR anew"
    )


def find_misaligned_pairs(stored: StoredImages) -> str | None:
    """Compares a few pairs of a dataset, from the first to the last; a warning where one does not belong together.

    Unreadable pairs are skipped, as are datasets without HR images. At scale 1, where cameras move and some images may
    need no change, there is a warning only where all are equal.
    """
    if not {"gt", "lq"} <= set(stored.files):
        return None
    count = len(stored.files["gt"])
    indices = sorted({round(step * (count - 1) / (_LOOKED_AT - 1)) for step in range(_LOOKED_AT)})
    faults: list[tuple[str, str]] = []
    for index in indices:
        try:
            large, small = (stored.roots[role].open(stored.files[role][index]).read() for role in ("gt", "lq"))
        except DataError:
            continue
        fault = None
        if stored.scale == 1:
            fault = EQUAL if np.array_equal(large, small) else None
        elif large.dtype == small.dtype:
            fault = find_misalignment(large, small, stored.scale)
        if fault is not None:
            faults.append((stored.label("gt", index), fault))
    if not faults or (stored.scale == 1 and len(faults) < len(indices)):
        return None
    return f"{len(faults)} of {len(indices)} pairs looked at do not fit, as {faults[0][0]}: {faults[0][1]}"


def _gray(image: np.ndarray) -> np.ndarray:
    """Luma, or the mean of bands, float32 in [0, 255]."""
    if image.shape[2] == 3:
        luma = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY).astype(np.float32)
    else:
        luma = image.mean(axis=2, dtype=np.float32)
    full = {"uint16": 257, "float32": 1 / 255}.get(image.dtype.name, 1)
    return luma if full == 1 else luma / np.float32(full)


def _window(small: np.ndarray, margin: int) -> tuple[int, int, int]:
    """Top, left and side of the square with most detail, `margin` pixels from all edges."""
    side = min(_LARGEST_WINDOW, min(small.shape) - 2 * margin)
    if side < _SMALLEST_WINDOW:
        return 0, 0, 0
    means, squares = (
        cv2.boxFilter(values, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
        for values in (small, small * small)
    )
    spread = squares - np.square(means)
    places = spread[margin : small.shape[0] - margin - side + 1, margin : small.shape[1] - margin - side + 1]
    top, left = np.unravel_index(int(places.argmax()), places.shape)
    return int(top) + margin, int(left) + margin, side


def _psnr(large: np.ndarray, target: np.ndarray, scale: int, top: int, left: int, shift: tuple[int, int]) -> float:
    """PSNR, dB, of MATLAB's bicubic downsampling of the shifted HR window against LR's."""
    length = (len(target) + 2 * _CONTEXT) * scale
    y, x = (top - _CONTEXT) * scale + shift[0], (left - _CONTEXT) * scale + shift[1]
    window = np.clip(np.rint(large[y : y + length, x : x + length, None]), 0, 255).astype(np.uint8)
    fine = imresize_integer(window, 1 / scale)[_CONTEXT:-_CONTEXT, _CONTEXT:-_CONTEXT].reshape(target.shape)
    error = float(np.square(fine.astype(np.float32) - target).mean())
    return 10 * math.log10(255**2 / max(error, 0.05))

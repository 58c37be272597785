"""Checks all images of a dataset before a run, so that a bad one is found now and not in the night.

By default only headers and the ends of files are read: that finds files that are empty, truncated, no images, of
pixels or sizes that are not read, too small for a patch, and pairs that do not fit. What it cannot find is damage
amid the compressed pixels; `check_images: full` decodes everything for that.
"""

from __future__ import annotations

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

from tqdm import tqdm

from basicsr.data.checks.inspection import Inspection, examine
from basicsr.data.checks.notes import Bar, NoteCache, in_tasks
from basicsr.data.data_util import count_mismatch, first_few, set_name
from basicsr.data.loading import prepare_worker
from basicsr.data.storage import ImageRoot, StoredImages, stored_images
from basicsr.data.transforms import check_depths, check_patches_fit, check_whole_pair
from basicsr.files.image_headers import ImageHeader
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.process_settings import num_processors
from basicsr.utils.text import printable

if TYPE_CHECKING:
    from basicsr.config.schema import DatasetOptions

_SHOWN = 20
_DETAILS = re.compile(r"\d[\d,.]*")
_SECONDS_WITHOUT_BAR = 1.5
_LONGEST_FAULT = 500


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
        look = partial(_look, root, decode, processes or _share_of_cores(), bar)
        notes = NoteCache("images", root, partial(_note, decode), partial(_noted, decode), rank, world_size)
        shapes, found = root.shapes(), notes.results(names, look)
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
    names, warnings = [name] if phase != "train" else [], list[str]()
    if not stored.chosen:
        names += map(set_name, roots)
        warnings += chain.from_iterable(root.warnings(len(stored)) for root in roots.values())
    mismatch = next(filter(None, (count_mismatch(called, len(stored)) for called in names)), None)
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
            lines.append(f"  and {len(others)} more pairs like it ({first_few(others)}), as where one setting is wrong")
    if more := sum(map(len, list(kinds.values())[_SHOWN:])):
        lines.append(f"and {more} more")
    return lines


def progress(description: str, shown: bool, items: Iterator[Any], total: int) -> Iterator[Any]:
    """The items; where `shown`, a progress bar counts them if it takes longer."""
    looks: dict[str, Any] = {"unit": "image", "leave": False, "dynamic_ncols": True, "delay": _SECONDS_WITHOUT_BAR}
    return iter(tqdm(items, description, total, disable=not shown, **looks))


def _look(
    root: ImageRoot, decode: bool, processes: int, bar: Bar, pool: Executor, names: list[str]
) -> Iterable[Inspection]:
    if not decode or not names:
        return bar(in_tasks(pool, partial(examine, root=root), names), len(names))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    prepare = partial(prepare_worker, 0, os.getpid())
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


def _share_of_cores() -> int:
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(num_processors() // (int(ranks) if ranks.isdigit() and int(ranks) else 1), 1)


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
    if not {"gt", "lq"} <= found.keys():
        return []
    gt, lq = found["gt"].header, found["lq"].header
    assert gt is not None and lq is not None
    names = labels["gt"], labels["lq"]
    try:
        check_depths(gt.depth, lq.depth, *names)
        for header, other, name in ((gt, found["lq"], names[1]), (lq, found["gt"], names[0])):
            if header.space == "gray" and other.colourful:
                raise DataError(f"is gray, but {name} is in colour; convert one of them")
        if stored.exact:
            check_patches_fit(gt.size, lq.size, stored.gt_patch_size, stored.scale, *names)
        else:
            check_whole_pair(gt.size, lq.size, stored.scale, *names)
    except DataError as error:
        return [BadImage(index, names[0], str(error), tuple(labels.values()))]
    return []

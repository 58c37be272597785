"""Looks at all images of a dataset before a run, so that a bad one is found now and not in the night.

By default only headers and the ends of files are read: that finds files that are empty, truncated, no images, of
pixels or sizes that are not read, too small for a patch, and pairs that do not fit. What it cannot find is damage
amid the compressed pixels; `check_images: full` decodes everything for that.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from basicsr.data.checks.inspection import Finding, ImageLocation, decoded, examine, stamp_of
from basicsr.data.checks.notes import CheckCache, Stamp
from basicsr.data.loading import prepare_worker
from basicsr.data.pairing import check_depths, check_patches_fit, check_whole_pair
from basicsr.data.storage import StoredImages, name_of
from basicsr.files.lmdb_databases import read_meta_info
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.text import printable

if TYPE_CHECKING:
    from basicsr.config.schema import DatasetOptions

_SHOWN = 20
_NAMED = 3  # names that stand for more pairs with a fault of the same kind
_DETAILS = re.compile(r"\d[\d,.]*")
_THREADS = 16
_TO_A_TASK = 64
_SECONDS_WITHOUT_BAR = 1.5

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, order=True)
class BadImage:
    """An image that cannot be used.

    Attributes:
        index: of the sample in the dataset.
        path: the file, or the LMDB database and the key in it.
        reason: what is wrong, in one line.
        pair: the names of both images where each is sound, but they do not fit each other.
    """

    index: int
    path: str
    reason: str
    pair: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check_images(
    dataset: Any, options: DatasetOptions, *, rank: int = 0, world_size: int = 1, processes: int | None = None
) -> list[BadImage]:
    """Looks at the images of every world-size-th sample, as `check_images` of the options says.

    Datasets say by a method `stored_images` where their images lie; of others nothing is known, and nothing is found.
    A progress bar appears on rank 0 at a terminal where it takes longer. What was found is remembered for the next
    start (`check_cache`).

    Args:
        dataset: any dataset.
        options: its entry.
        rank: this process's number.
        world_size: number of processes.
        processes: how many to decode with; None for this process's share of the machine's cores.

    Returns:
        What this rank found, in the dataset's order.

    Raises:
        DataError: an LMDB database is missing or damaged.
        MachineError: a process was killed while it decoded.
    """
    stored = stored_images(dataset)
    if options.check_images == "none" or stored is None:
        return []
    indices = range(rank, len(next(iter(stored.files.values()))), world_size)
    decode = options.check_images == "full"
    shown = rank == 0 and sys.stderr.isatty()
    findings: dict[str, list[Finding]] = {}
    for role in stored.files:
        shown_by = partial(bar, f"Checking {options.name} ({role})", shown)
        caches = CheckCache(stored.roots[role], rank, world_size)
        findings[role] = _findings(stored, role, indices, caches, decode, shown_by, processes or _share_of_cores())
    bad: list[BadImage] = []
    for number, index in enumerate(indices):
        bad += _judge(stored, index, {role: found[number] for role, found in findings.items()})
    return bad


def stored_images(dataset: Any) -> StoredImages | None:
    """Where a dataset's images lie; None where it does not say."""
    method = getattr(dataset, "stored_images", None)
    answer = method() if callable(method) else None
    return answer if isinstance(answer, StoredImages) else None


def report(bad: Sequence[BadImage], total: int, name: str) -> str:
    """The message about bad images, of all ranks together.

    Args:
        bad: at least one.
        total: number of samples in the dataset.
        name: of the dataset.
    """
    lines = [f"{len({image.index for image in bad})} of {total} images of dataset {name} cannot be used:"]
    lines += [f"  {line}" for line in told_once([(str(image), image.pair) for image in sorted(bad)])]
    lines.append(
        "Copy, convert or remove these files and start again; in training, skip_bad_images: N goes on without up to N"
        " of them"
    )
    return "\n".join(lines)


def told_once(faults: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Lines about faults, up to twenty; pairs that do not fit for one reason are one, with their number.

    Args:
        faults: what is wrong, and where it is wrong between two images, their names, which the text may have.
    """
    kinds: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for text, pair in faults:
        kind = text
        for name in pair:
            kind = kind.replace(name, "")
        kinds.setdefault(_DETAILS.sub("#", kind) if pair else text, []).append((text, pair))
    lines = []
    for number, alike in enumerate(kinds.values()):
        if number == _SHOWN:
            lines.append(f"and {sum(map(len, list(kinds.values())[_SHOWN:]))} more")
            break
        lines.append(printable(alike[0][0]))
        if others := [os.path.basename(pair[0]) if pair else text for text, pair in alike[1:]]:
            shown = printable(", ".join(others[:_NAMED])) + (", ..." if others[_NAMED:] else "")
            lines.append(f"  and {len(others)} more pairs like it ({shown}), as where one setting is wrong")
    return lines


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells one list of images from another, wherever it lies, as files or in LMDB.

    Returns:
        `images`, their number; `names`, the SHA-256 of the HR images' names in the order of use, relative to their
        folder and without ending; `pixels of image 0 (gt)` and so on, that of a few images of each kind, decoded. None
        for datasets that name no images, and for an image that cannot be read.
    """
    stored = stored_images(dataset)
    if stored is None:
        return {"images": len(dataset), "names": None}
    role = next(iter(stored.files))
    digest = hashlib.sha256()
    for file in stored.files[role]:
        name = file if stored.lmdb else os.path.splitext(_relative(file, stored.roots[role]))[0].replace(os.sep, "/")
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return {"images": len(stored.files[role]), "names": digest.hexdigest(), **_pixels(stored)}


def files_digest(dataset: Any) -> str | None:
    """SHA-256 of all files' names and sizes of a dataset; None for datasets that name no images."""
    if (stored := stored_images(dataset)) is None:
        return None
    digest = hashlib.sha256()
    for role, files in stored.files.items():
        root = stored.roots[role]
        looked_at = [os.path.join(root, "data.mdb")] if stored.lmdb else files
        for file in looked_at:
            try:
                size = os.stat(file).st_size
            except OSError:
                size = -1  # the check of all images says what is wrong with it
            digest.update(f"{role} {size} {_relative(file, root)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _pixels(stored: StoredImages) -> dict[str, str | None]:
    """SHA-256 of the first, the middle and the last image of each kind, decoded; None of one that cannot be read."""
    digests: dict[str, str | None] = {}
    for role, files in stored.files.items():
        for index in sorted({0, len(files) // 2, len(files) - 1}):
            try:
                pixels = decoded(ImageLocation(files[index], stored.roots[role] if stored.lmdb else None))
                content = f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()
                digest = hashlib.sha256(content).hexdigest()
            except DataError:
                digest = None
            digests[f"pixels of image {index} ({role})"] = digest
    return digests


def _findings(
    stored: StoredImages,
    role: str,
    indices: range,
    cache: CheckCache,
    decode: bool,
    bar: Callable[[Iterator[Any], int], Iterator[Any]],
    processes: int,
) -> list[Finding]:
    """What is found about one role's images of the samples, from the cache or by looking."""
    root, files = stored.roots[role], stored.files[role]
    places = [ImageLocation(files[index], root if stored.lmdb else None) for index in indices]
    names = [location.name if stored.lmdb else _relative(location.name, root) for location in places]
    with _Threads() as pool:
        stamps = _stamps(pool, root, places, stored.lmdb)
        known = [
            None if stamp is None else cache.find(name, stamp, decode)
            for name, stamp in zip(names, stamps, strict=True)
        ]
        waiting = [number for number, finding in enumerate(known) if finding is None]
        wanted = [places[number] for number in waiting]
        if decode and wanted:
            found = _decode(wanted, min(processes, len(wanted)), bar)
        else:
            found = list(bar(_in_tasks(pool, _examine_all, wanted), len(wanted)))
    for number, finding in zip(waiting, found, strict=True):
        known[number] = finding
    results = [finding or Finding("cannot be read") for finding in known]
    if waiting:
        # Stamps were taken before looking: what changes meanwhile is looked at again next time.
        fresh = {
            name: (stamp, finding)
            for name, stamp, finding in zip(names, stamps, results, strict=True)
            if stamp is not None
        }
        cache.save(fresh, decode)
    if stored.lmdb:
        shapes = read_meta_info(root)
        return [_compared(finding, shapes.get(name)) for name, finding in zip(names, results, strict=True)]
    return results


def _compared(finding: Finding, shape: tuple[int, int, int] | None) -> Finding:
    """The finding, or that the database's list says otherwise: then list and images are not of one making."""
    header = finding.header
    if header is None or shape is None or sorted(header.size) == sorted(shape[:2]):
        return finding
    return Finding(
        f"meta_info.txt says {shape[0]}x{shape[1]}, the image is {header.height}x{header.width}; create the LMDB"
        " database again"
    )


def _judge(stored: StoredImages, index: int, findings: dict[str, Finding]) -> list[BadImage]:
    """What is wrong with a sample: with its images each alone, or else with the pair."""
    names = {role: stored.name(role, index) for role in findings}
    if bad := [BadImage(index, names[role], found.fault) for role, found in findings.items() if found.fault]:
        return bad
    if "gt" not in findings or "lq" not in findings:
        return []
    gt, lq = findings["gt"].header, findings["lq"].header
    assert gt is not None and lq is not None
    try:
        check_depths(gt.depth, lq.depth, names["gt"], names["lq"])
        for one, other in (("gt", "lq"), ("lq", "gt")):
            header, colourful = findings[one].header, findings[other].colourful
            if header is not None and header.space == "gray" and colourful:
                raise DataError(f"is gray, but {names[other]} is in colour; convert one of them")
        _check_fit(stored, index, gt.size, lq.size)
    except DataError as error:
        return [BadImage(index, names["gt"], str(error), tuple(names.values()))]
    return []


def _check_fit(stored: StoredImages, index: int, gt_size: tuple[int, int], lq_size: tuple[int, int]) -> None:
    names = stored.name("gt", index), stored.name("lq", index)
    if stored.exact:
        check_patches_fit(gt_size, lq_size, stored.gt_patch_size, stored.scale, *names)
    else:
        check_whole_pair(gt_size, lq_size, stored.scale, *names)


def _stamps(pool: Executor, root: str, places: Sequence[ImageLocation], lmdb: bool) -> list[Stamp | None]:
    if lmdb:
        return [stamp_of(os.path.join(root, "data.mdb"))] * len(places)
    return list(_in_tasks(pool, _stamps_of, places))


def _stamps_of(places: Sequence[ImageLocation]) -> list[Stamp | None]:
    return [stamp_of(location.name) for location in places]


def _examine_all(places: Sequence[ImageLocation], decode: bool = False) -> list[Finding]:
    return [examine(location, decode) for location in places]


def _in_tasks(
    pool: Executor,
    function: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    size: int = _TO_A_TASK,
) -> Iterator[Result]:
    # Handed over here and not when the first result is asked for: processes begin before a bar starts its thread.
    results = pool.map(function, [items[start : start + size] for start in range(0, len(items), size)])
    return chain.from_iterable(results)


def _decode(
    places: Sequence[ImageLocation], processes: int, bar: Callable[[Iterator[Any], int], Iterator[Any]]
) -> list[Finding]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    prepare = partial(prepare_worker, 0, os.getpid())
    pool = ProcessPoolExecutor(processes, context, initializer=prepare)
    results: list[Finding] = []
    try:
        for finding in bar(_in_tasks(pool, partial(_examine_all, decode=True), places, size=2), len(places)):
            results.append(finding)
    except BrokenProcessPool as error:
        near = name_of(*places[len(results)])
        raise MachineError(
            f"a process was killed while it decoded {near} or one of the next images, maybe for lack of memory; set"
            " check_images: headers, or free memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


class _Threads(ThreadPoolExecutor):
    """Threads that are not waited for after Ctrl+C but for what they have begun."""

    def __init__(self) -> None:
        super().__init__(_THREADS)

    def __exit__(self, *error: Any) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def bar(description: str, shown: bool, items: Iterator[Any], total: int) -> Iterator[Any]:
    """The items; where `shown`, a progress bar counts them if it takes longer."""
    return iter(
        tqdm(
            items,
            desc=description,
            total=total,
            unit="image",
            leave=False,
            dynamic_ncols=True,
            delay=_SECONDS_WITHOUT_BAR,
            disable=not shown,
        )
    )


def _share_of_cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(available // (int(ranks) if ranks.isdigit() and int(ranks) else 1), 1)


def _relative(path: str, root: str) -> str:
    """The part of a path below a root that it begins with, as the lists of names make it."""
    return path[len(root) :].lstrip("/\\") if path.startswith(root) else path

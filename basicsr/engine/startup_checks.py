"""Looking at all images of a run before it begins, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from basicsr.config.schema import DatasetOptions
from basicsr.data.checks.alignment import find_misaligned_pairs
from basicsr.data.checks.checking import BadImage, check_images, dataset_warnings, report
from basicsr.data.checks.digests import files_digest, fingerprint
from basicsr.data.storage import stored_images
from basicsr.engine.process.agreement import require_equal
from basicsr.engine.process.distributed import RankInfo, on_master
from basicsr.engine.process.stop import StopRequest
from basicsr.engine.teacher_cache.matching import check_content
from basicsr.engine.training_run import TrainingRun
from basicsr.utils.dist_util import gather_objects, raise_together
from basicsr.utils.errors import DataError, UserError


def require_equal_images(datasets: Mapping[str, Any]) -> None:
    """Compares the images of all ranks, which need not read them from one disk. All must call.

    Args:
        datasets: by what the message is to call them.

    Raises:
        DataError: they differ; on every rank.
    """
    require_equal(
        lambda: {
            f"{called}: {what}": value
            for called, dataset in datasets.items()
            for what, value in {**fingerprint(dataset), "files and their sizes": files_digest(dataset)}.items()
        }
    )


def check_all_images(run: TrainingRun, stop: StopRequest) -> list[str]:
    """Checks the images for training and validation as `check_images` says, and the teacher's cache, if there is one.

    All ranks must call.

    Args:
        run: about to begin.
        stop: a signal ends the check at once.

    Returns:
        What the log should say of the images, and of those that training will do without.

    Raises:
        DataError: images cannot be used, more of them than may be skipped, or the teacher's cache is of others; on
            every rank.
        Preempted: a signal came.
    """
    block = run.options.datasets["train"]
    entries = [(run.loader.dataset, block)]
    entries += [(run.validation[other.name], other) for other in run.options.datasets_of("val").values()]
    bad, remarks = check_datasets(entries, run.rank_info, stop.at_once)
    run.loader.leave_out((image.index, str(image)) for image in bad)
    for image in bad:
        run.skipped.setdefault(image.index, []).append(str(image))
    remarks += [f"{block.name}: left out: {image.path}: {image.reason}" for image in bad]

    def compare() -> None:
        with stop.at_once():
            check_content(run.options, run.loader.dataset)

    on_master(run.rank_info, compare)
    return remarks


def check_datasets(
    entries: Sequence[tuple[Any, DatasetOptions]],
    rank_info: RankInfo,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[BadImage], list[str]]:
    """Looks at the images of datasets as `check_images` of each says, and at what else lies in their folders.

    All ranks must call.

    Args:
        entries: each dataset and its options.
        rank_info: this rank.
        guard: the context to look in; ranks do not wait for each other within it.

    Returns:
        Bad images that training may do without (`skip_bad_images`), and on rank 0 what the log should say.

    Raises:
        DataError: images cannot be used, more of them than may be skipped; on every rank.
    """
    remarks: list[str] = []
    reports: list[str] = []
    left_out: list[BadImage] = []
    for dataset, block in entries:
        mine: list[BadImage] = []
        failure: UserError | None = None
        try:
            with guard():
                stored = stored_images(dataset)
                if rank_info.is_master and stored is not None:
                    remarks += dataset_warnings(block.name, stored, block.phase)
                    if block.check_images != "none" and (fault := find_misaligned_pairs(stored)):
                        remarks.append(f"{block.name}: {fault}; scripts/data/check_dataset.py looks at all pairs")
                mine = check_images(dataset, block, rank=rank_info.rank, world_size=rank_info.world_size)
        except UserError as error:
            failure = error
        raise_together(failure)
        bad = sorted(image for found in gather_objects(mine) for image in found)
        samples = {image.index for image in bad}
        if len(samples) > (block.skip_bad_images if block.phase == "train" else 0):
            reports.append(report(bad, len(dataset), block.name))
        elif bad:
            left_out += bad
    if reports:
        told = DataError("\n".join(reports))
        told.known_to_all = True
        raise told
    return left_out, list(dict.fromkeys(remarks))

"""Looking at all images of a run before it begins, shared among ranks."""

from __future__ import annotations

from basicsr.data.checking import BadImage, check_images, report
from basicsr.engine.distributed import on_master
from basicsr.engine.stop import StopRequest
from basicsr.engine.teacher_cache import check_content
from basicsr.engine.training_run import TrainingRun
from basicsr.utils.dist_util import gather_objects, raise_together
from basicsr.utils.errors import DataError, UserError


def check_equal_on_all_ranks(run: TrainingRun) -> None:
    """Compares weights and training images of all ranks, which need not read them from one disk. All must call.

    Raises:
        DataError: they differ; on every rank.
    """
    first, *others = gather_objects({"weights": run.files, "training images": run.images})
    for rank, other in enumerate(others, start=1):
        for what, found in other.items():
            if found != first[what]:
                error = DataError(f"rank {rank} reads other {what} than rank 0: {found}, not {first[what]}")
                error.known_to_all = True
                raise error


def check_all_images(run: TrainingRun, stop: StopRequest) -> list[str]:
    """Checks the images for training and validation as `check_images` says, and the teacher's cache, if there is one.

    All ranks must call.

    Args:
        run: about to begin.
        stop: a signal ends the check at once.

    Returns:
        What the log should say of images that training will do without.

    Raises:
        DataError: images cannot be used, more of them than may be skipped, or the teacher's cache is of others; on
            every rank.
        Preempted: a signal came.
    """
    remarks: list[str] = []
    reports: list[str] = []
    blocks = {"train": (run.loader.dataset, run.options.datasets["train"])}
    for block in run.options.datasets_of("val").values():
        blocks[block.name] = (run.validation[block.name], block)
    for dataset, block in blocks.values():
        mine: list[BadImage] = []
        failure: UserError | None = None
        try:
            with stop.at_once():
                mine = check_images(dataset, block, rank=run.place.rank, world_size=run.place.world_size)
        except UserError as error:
            failure = error
        raise_together(failure)
        bad = sorted(image for found in gather_objects(mine) for image in found)
        allowed = block.skip_bad_images if block.phase == "train" else 0
        if len(bad) > allowed:
            reports.append(report(bad, len(dataset), block.name))  # type: ignore[arg-type]
        elif bad:
            run.loader.leave_out((image.index, str(image)) for image in bad)
            remarks += [f"{block.name}: left out: {image.path}: {image.reason}" for image in bad]
    if reports:
        told = DataError("\n".join(reports))
        told.known_to_all = True
        raise told

    def compare() -> None:
        with stop.at_once():
            check_content(run.options, run.loader.dataset)

    on_master(run.place, compare)
    return remarks

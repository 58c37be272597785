"""Evaluation by the options' section `val`, and validation during training."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from tqdm import tqdm

from basicsr.config.schema import Options
from basicsr.data.storage import stored_images
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.logs.run_log import RunLog
from basicsr.engine.process.command import StopRequest
from basicsr.engine.process.distributed import RankInfo
from basicsr.files.band_files import as_type, picture_of, write_bands
from basicsr.files.images import imwrite
from basicsr.metrics.evaluator import Evaluation, EvaluationDataset, SaveImage, evaluate
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import UserError

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun


def evaluate_with(
    options: Options,
    network: nn.Module,
    dataset: EvaluationDataset,
    rank_info: RankInfo,
    stop: StopRequest,
    description: str,
    save_image: SaveImage | None,
    *,
    training: bool = False,
) -> Evaluation | None:
    """Evaluates a network on a set as `options.val` says; None where a rank was asked to stop. All ranks must call."""
    val = options.val
    shown = rank_info.is_master and sys.stderr.isatty() and (val.pbar or not training)
    return evaluate(
        network,
        dataset,
        val.metrics,
        rank_info.device,
        scale=options.scale,
        self_ensemble=val.self_ensemble,
        tile=val.tile,
        tile_overlap=val.tile_overlap,
        amp=val.amp,
        save_image=save_image,
        should_stop=lambda: bool(stop),
        progress=partial(tqdm, desc=description, unit="image", leave=not training, disable=not shown),
    )


def validate(run: TrainingRun, folder: CheckpointFolder, log: RunLog | None, stop: StopRequest) -> bool:
    """Evaluates the network on every validation set, over all ranks, logs the figures, and keeps the best weights.

    The best are those of the best figure of `val: best`; by default of the first set that has figures and of its
    first metric. Returns False where a rank was asked to stop before the end; then validation stays due. Raises
    NonFiniteError where an output is not finite, DataError where an image cannot be read or measured.
    """
    evaluations: dict[str, Evaluation] = {}
    for name, dataset in run.validation.items():
        network = run.ema.network if run.ema is not None else run.network
        save, shown = _image_saver(run, log, name), f"Validation {name}"
        evaluation = evaluate_with(run.options, network, dataset, run.rank_info, stop, shown, save, training=True)
        if evaluation is None:
            return False
        if evaluation.metrics:
            evaluations[name] = evaluation
    chosen = run.options.val.best
    best_dataset = chosen.dataset if chosen is not None else next(iter(evaluations), None)
    lines, is_best, before = [], False, copy.deepcopy((run.best, run.progress))
    for name, evaluation in evaluations.items():
        best_metric = chosen.metric if chosen is not None else evaluation.metrics[0]
        improved = run.note_best(name, evaluation)
        if name == best_dataset:
            is_best = best_metric in improved
            run.note_progress(best_metric, evaluation.means()[best_metric])
        figures = []
        for metric, value in evaluation.means().items():
            record = run.best[name][metric]
            figures.append(f"{metric}: {value:.4f} (best: {record['value']:.4f} @ {int(record['iteration'])} iter)")
        count = f"{len(evaluation.images)} image{'s' if len(evaluation.images) != 1 else ''}"
        lines.append(f"Validation {name} ({count}), iter {run.iteration:,d}: {'; '.join(figures)}")

    def write() -> None:
        if log is not None:
            for line in lines:
                log.line(line)
            log.metrics(run.iteration, {name: evaluation.means() for name, evaluation in evaluations.items()})
        if is_best:
            folder.save_named("best", run.student_weights())

    try:
        on_master(write)
    except UserError:
        run.best, run.progress = before  # the validation stays due, and is to find the best once more
        raise
    run.validation_due = False
    return True


def save_result(dataset: EvaluationDataset, image: np.ndarray, path: Path) -> None:
    """Writes what `evaluate` hands over as PNG; of bands a picture of some, and beside it all, as the LR images are.

    Raises DataError where that is not possible.
    """
    imwrite(picture_of(image), path)
    if image.dtype == np.float32:
        stored, form = stored_images(dataset), None
        if stored is not None:  # LR images may be made of the HR images
            role = "lq" if "lq" in stored.files else "gt"
            form = stored.roots[role].form(stored.files[role][0])
        suffix, dtype = form or (".npy", np.dtype(np.float32))
        write_bands(path.with_suffix(suffix), as_type(image, dtype))


def _image_saver(run: TrainingRun, log: RunLog | None, dataset: str) -> SaveImage | None:
    """Saves every image if the options say so, and shows each set's first one in TensorBoard and W&B."""
    shown: list[str] = []
    root, images = run.options.visualization_folder, run.validation[dataset]
    suffix = f"_{run.options.val.suffix}" if run.options.val.suffix else ""

    def save(name: str, image: np.ndarray) -> None:
        if run.options.saves_images:
            save_result(images, image, root / dataset / name / f"{Path(name).name}_{run.iteration}{suffix}.png")
        if log is not None and not shown:
            shown.append(name)
            log.comparison(dataset, name, run.iteration, picture_of(image))

    return save

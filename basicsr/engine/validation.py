"""Validation during training."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from tqdm import tqdm

from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.run_log import RunLog
from basicsr.engine.stop import StopRequest
from basicsr.engine.training_run import TrainingRun
from basicsr.metrics.evaluator import Evaluation, SaveImage, evaluate
from basicsr.utils.img_util import imwrite


def validate(run: TrainingRun, folder: CheckpointFolder, log: RunLog | None, stop: StopRequest) -> bool:
    """Evaluates the network on every validation set, over all ranks, and keeps the best weights.

    The best are those of the highest (or lowest) figure of `val: best`; by default of the first set with HR images
    and of its first metric.

    Returns:
        False where a rank was asked to stop before the end: the figures are dropped and validation stays due.
    """
    chosen = run.options.val.best
    best_dataset = chosen.dataset if chosen is not None else None
    shown = run.options.val.pbar and run.place.is_master and sys.stderr.isatty()
    for name, dataset in run.validation.items():
        evaluation = evaluate(
            run.evaluated_network,
            dataset,
            run.options.val.metrics,
            run.place.device,
            save_image=_image_saver(run, log, name),
            should_stop=lambda: bool(stop),
            progress=partial(tqdm, desc=f"Validation {name}", unit="image", leave=False, disable=not shown),
        )
        if evaluation is None:
            return False
        if not evaluation.metrics:
            continue
        best_dataset = best_dataset or name
        best_metric = chosen.metric if chosen is not None else evaluation.metrics[0]
        improved = run.note_best(name, evaluation)
        if log is not None:
            _report(run, log, name, evaluation)
        if name == best_dataset and best_metric in improved and run.place.is_master:
            folder.save_named("best", run.student_weights())
    run.validation_due = False
    return True


def _report(run: TrainingRun, log: RunLog, name: str, evaluation: Evaluation) -> None:
    means = evaluation.means()
    figures = "; ".join(
        f"{metric}: {value:.4f} (best: {run.best[name][metric]['value']:.4f}"
        f" @ {int(run.best[name][metric]['iteration'])} iter)"
        for metric, value in means.items()
    )
    log.line(f"Validation {name}, iter {run.iteration:,d}: {figures}")
    log.metrics(name, run.iteration, means)


def _image_saver(run: TrainingRun, log: RunLog | None, dataset: str) -> SaveImage | None:
    """Saves every image if the options say so, and shows each set's first one in TensorBoard."""
    shown: list[str] = []
    root = run.options.visualization_folder
    suffix = f"_{run.options.val.suffix}" if run.options.val.suffix else ""

    def save(name: str, image: np.ndarray) -> None:
        if run.options.val.save_img:
            imwrite(image, str(root / dataset / name / f"{name}_{run.iteration}{suffix}.png"))
        if log is not None and not shown:
            shown.append(name)
            log.image(dataset, name, run.iteration, image)

    return save

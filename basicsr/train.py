"""Training: `python basicsr/train.py -opt FILE`, or under torchrun with `--launcher pytorch`.

Read from the bottom up: `main` parses, `train_pipeline` assembles a run, `fit` loops, `train_step` is one iteration.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: import the package it lies in, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from basicsr.data.batch import Batch
from basicsr.engine import experiment
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.command import run_command
from basicsr.engine.distributed import Launcher, Place, any_rank, distributed
from basicsr.engine.run_log import RunLog
from basicsr.engine.stop import Preempted, StopRequest
from basicsr.engine.training_run import TrainingRun
from basicsr.engine.validation import validate
from basicsr.utils.dist_util import sum_over_ranks
from basicsr.utils.errors import CheckpointError, NonFiniteError
from basicsr.utils.options import load_options, parse_arguments, resolved_yaml
from basicsr.utils.options_schema import Options
from basicsr.utils.randomness import seed_everything


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        folder: experiments/NAME.
        iteration: number of iterations done.
        best: per dataset and metric, the best value and the iteration it was reached at.
    """

    folder: Path
    iteration: int
    best: Mapping[str, Mapping[str, Mapping[str, float]]]


def train_step(run: TrainingRun, batches: Sequence[Batch], stop: StopRequest) -> tuple[dict[str, torch.Tensor], bool]:
    """One iteration: losses and gradients of student and discriminator, then, if all are finite, both updates.

    Args:
        run: what is trained; `run.iteration` is counted up.
        batches: the iteration's micro-batches, on the device; one unless gradients are accumulated.
        stop: whether this rank was asked to stop.

    Returns:
        The unweighted parts of the losses, on the device, and whether any rank was asked to stop.

    Raises:
        NonFiniteError: a loss or gradient is NaN or infinite on any rank; nothing was updated.
    """
    iteration = run.iteration + 1
    train, adversary = run.options.train, run.adversary
    seed_everything(run.options.manual_seed, iteration, run.place.rank)
    run.set_learning_rates(iteration)
    student_learns = iteration > train.net_d_init_iters and iteration % train.net_d_iters == 0
    run.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    parts: dict[str, torch.Tensor] = {}
    pairs = []
    for index, batch in enumerate(batches):
        with run.synchronising(last=index == len(batches) - 1), torch.set_grad_enabled(student_learns):
            output = run.model(batch, iteration)
            total, step_parts = output.total, output.parts
            if adversary is not None and student_learns:
                guidance = adversary.guidance(output.sr)
                total, step_parts["l_adv"] = total + adversary.weight * guidance, guidance.detach()
            step_parts["l_total"] = total.detach()
            if student_learns:
                run.scaler.scale(total / len(batches)).backward()
        for name, part in step_parts.items():
            parts[name] = parts.get(name, 0) + part / len(batches)
        assert batch.gt is not None, "training needs HR images"
        pairs.append((batch.gt, output.sr.detach()))
    if adversary is not None:
        parts.update(adversary.backward(pairs))

    finite, gradients = _check_gradients(run, parts)
    non_finite, stopping = any_rank([not finite, bool(stop)], run.place.device)
    if non_finite:
        raise NonFiniteError(_describe_failure(iteration, parts, gradients, batches))
    if student_learns:
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(run.trained_parameters(), train.grad_clip, gradients)
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if adversary is not None:
        adversary.step()
    run.after_update(iteration)
    run.iteration = iteration
    return parts, stopping


def fit(run: TrainingRun, folder: CheckpointFolder, log: RunLog | None, stop: StopRequest) -> None:
    """Trains to `total_iter`, logging, saving and validating on schedule.

    Raises:
        Preempted: the run was asked to stop; its state is saved.
        NonFiniteError: see `train_step` and `validate`.
    """
    options, device = run.options, run.place.device
    total = options.train.total_iter
    options_text = resolved_yaml(options)
    stopping = False
    if run.validation_due:  # what was cut off is made up for, and noted as done
        stopping = not validate(run, folder, log, stop)
        if not stopping:
            _save(run, folder, options_text)
    waited, since, asked = 0.0, run.iteration, time.monotonic()
    for batches in run.loader if not stopping else ():
        waited += time.monotonic() - asked
        placed = [batch.to(device, options.channels_last) for batch in batches]
        parts, stopping = train_step(run, placed, stop)
        last = run.iteration == total
        if log is not None:
            log.tick()
        if run.iteration % options.logger.print_freq == 0 or last:
            _log_step(run, log, parts, waited / (run.iteration - since))
            waited, since = 0.0, run.iteration
        run.validation_due = run.is_due(options.val.val_freq) or last
        if run.validation_due and not stopping:
            stopping = not validate(run, folder, log, stop)
        if run.is_due(options.logger.save_checkpoint_freq) or last or stopping:
            _save(run, folder, options_text)
        if stopping and not last:
            break
        asked = time.monotonic()
    if stopping and (run.iteration < total or run.validation_due):
        raise Preempted(f"preempted: saved {run.iteration}.state; go on with --auto_resume")
    if run.place.is_master:
        folder.save_named("latest", run.student_weights())


def train_pipeline(
    source: str | Path | Mapping[str, Any],
    *,
    launcher: Launcher = "none",
    auto_resume: bool = False,
    debug: bool = False,
    force_yml: Sequence[str] = (),
    root: str | Path = ".",
) -> TrainingResult:
    """Trains what an options file, or the same content as a dict, describes.

    Args:
        source: path of the file, or the options themselves.
        launcher: 'none' for one process, 'pytorch' under torchrun, 'slurm' under srun.
        auto_resume: continue from the newest intact checkpoint of the run's name, if there is one.
        debug: prefix the name with `debug_`; log, validate and save often.
        force_yml: changes to the options such as `train:total_iter=100`.
        root: the folder of `experiments` and `tb_logger`.

    Raises:
        UserError: one of its kinds, for anything that the user can mend.
    """
    options = load_options(source, overrides=force_yml, training=True, debug=debug, root=Path(root))
    params = options.dist_params
    with StopRequest() as stop, distributed(launcher, options.num_gpu, params.backend, params.port) as place:
        return _train(options, place, auto_resume, stop)


def _train(options: Options, place: Place, auto_resume: bool, stop: StopRequest) -> TrainingResult:
    resume, remarks = experiment.find_checkpoint(options, auto_resume)
    if resume is not None:
        remarks += experiment.changed_options(resume, options, place)
    run = TrainingRun(options, place, resume)  # before anything is written: what does not fit shows here
    experiment.prepare_training(options, place, fresh=resume is None)
    with experiment.open_log(options.experiment_folder, "train", options.name, place) as logger:
        for remark in filter(None, (place.remark, *remarks)):
            logger.warning(remark)
        for remark in run.remarks:
            logger.info(remark)
        experiment.describe(run, logger, resume)
        with experiment.open_run_log(run, logger) as log:
            fit(run, CheckpointFolder(options.experiment_folder, options.logger.keep_checkpoints), log, stop)
        logger.info(f"End of training after {run.iteration} iterations; weights in {options.models_folder}")
    return TrainingResult(options.experiment_folder, run.iteration, run.best)


def _check_gradients(run: TrainingRun, parts: Mapping[str, torch.Tensor]) -> tuple[bool, torch.Tensor]:
    """Whether losses and gradients are finite, and the norm of the student's gradients.

    Under fp16 only losses count: the scaler skips updates whose gradients overflow, and lowers its scale.
    """
    gradients = [parameter.grad for parameter in run.trained_parameters() if parameter.grad is not None]
    if gradients:
        run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm(gradients)
    checked = [parts["l_total"], *(part for name, part in parts.items() if name.startswith("l_d_"))]
    others = run.adversary.gradients() if run.adversary is not None else []
    if not run.scaler.is_enabled():
        checked += [norm.to(run.place.device), torch.nn.utils.get_total_norm(others).to(run.place.device)]
    return bool(torch.isfinite(torch.stack([value.float() for value in checked])).all()), norm


def _describe_failure(
    iteration: int, parts: Mapping[str, torch.Tensor], norm: torch.Tensor, batches: Sequence[Batch]
) -> str:
    values = {name: float(part) for name, part in parts.items()} | {"gradient norm": float(norm)}
    broken = [f"{name} = {value}" for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    if not broken:
        return f"iteration {iteration}: a loss or gradient is not finite on another rank; nothing was updated"
    sound = ", ".join(f"{name} = {value:.4g}" for name, value in values.items() if f"{name} = {value}" not in broken)
    paths = [path for batch in batches for path in batch.lq_paths]
    files = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    others = f" ({sound})" if sound else ""
    return f"iteration {iteration}: {', '.join(broken)}{others}; nothing was updated; batch: {files}"


def _save(run: TrainingRun, folder: CheckpointFolder, options_text: str) -> None:
    """Saves on rank 0; where that fails, every rank ends."""
    failure: CheckpointError | None = None
    if run.place.is_master:
        try:
            run.save(folder, options_text)
        except CheckpointError as error:
            failure = error
    if any_rank([failure is not None], run.place.device)[0]:
        raise failure or CheckpointError("rank 0 could not save the checkpoint; it says why")


def _log_step(run: TrainingRun, log: RunLog | None, parts: Mapping[str, torch.Tensor], waited: float) -> None:
    """Averages the parts over ranks and logs them; all ranks must call."""
    stacked = torch.stack([part.float() for part in parts.values()])
    values = (sum_over_ranks(stacked) / run.place.world_size).tolist()
    if log is not None:
        rates = run.set_learning_rates(run.iteration)
        log.step(run.iteration, run.epoch, rates, dict(zip(parts, values, strict=True)), waited)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv, training=True)
    train_pipeline(
        arguments.opt,
        launcher=arguments.launcher,
        auto_resume=arguments.auto_resume,
        debug=arguments.debug,
        force_yml=arguments.force_yml or (),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

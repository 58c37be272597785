"""Training: `python basicsr/train.py -opt FILE`, or under torchrun with `--launcher pytorch`.

Read from the bottom up: `main` parses, `train_pipeline` assembles a run, `fit` loops, `train_step` is one iteration.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: import the package it lies in, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.engine.process.command import StopRequest, quiet_start, run_command
from basicsr.utils.process_settings import STOP_SIGNALS, shorten_spinning

if __name__ == "__main__":
    quiet_start(STOP_SIGNALS)  # what is imported below takes seconds
    shorten_spinning()

import torch

from basicsr.config.load import load_options, parse_arguments
from basicsr.config.schema import Options
from basicsr.data.batch import Batch
from basicsr.data.degradations.operations import sharpened
from basicsr.data.loading import PrefetchedBatches
from basicsr.engine import resuming
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.inputs import input_digests, require_equal_images
from basicsr.engine.logs.run_log import RunLog, RunStatus, SkippedImages, describe, open_log, open_run_log
from basicsr.engine.process.distributed import Launcher, RankInfo, joined, require_equal
from basicsr.engine.process.rank_watchdog import following
from basicsr.engine.run_folder import check_training_folders, owned, prepare_training
from basicsr.engine.startup_checks import check_all_images, check_fit
from basicsr.engine.training_run import TrainingRun
from basicsr.engine.validation import validate
from basicsr.files.atomic_files import sha256_of
from basicsr.models import recognise_networks
from basicsr.models.kd_model import Adversary
from basicsr.utils.dist_util import any_rank, gather_objects, on_master, raise_together, synchronising
from basicsr.utils.errors import NonFiniteError, Preempted, UserError
from basicsr.utils.logger import log_remark
from basicsr.utils.process_settings import keep_freed_memory
from basicsr.utils.randomness import seed_everything

_SMALLEST_SCALE = 1.0  # of fp16's losses; gradients that overflow even so are not too large for fp16 only


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: experiments/NAME, iterations done, and per dataset and metric the best value and iteration."""

    folder: Path
    iteration: int
    best: Mapping[str, Mapping[str, Mapping[str, float]]]


def train_step(
    run: TrainingRun, batches: Sequence[Batch], notices: Callable[[], Sequence[bool]] = tuple
) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """One iteration: losses and gradients of student and discriminator, then, if all are finite, both updates.

    `run.iteration` is counted up. `batches` are the iteration's micro-batches, on the device, `notices` flags of this
    rank for the others at the end of the iteration, such as that it was asked to stop. Returns the unweighted parts of
    the losses, on the device, and which of `notices` hold on any rank. Raises NonFiniteError where a loss or gradient
    is NaN or infinite on any rank; nothing was updated then.
    """
    iteration = run.iteration + 1
    train = run.options.train
    adversary = run.adversary if batches[0].gt is not None else None
    seed_everything(run.options.manual_seed, iteration, run.rank_info.rank)
    run.begin_iteration(iteration)
    student_learns = iteration > train.net_d_init_iters and iteration % train.net_d_iters == 0
    run.optimizer.zero_grad(set_to_none=True)
    if adversary is not None:
        adversary.begin()
    parts: dict[str, torch.Tensor] = {}
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        for name, part in _accumulate(run, batch, iteration, student_learns, len(batches), last).items():
            parts[name] = parts.get(name, 0) + part / len(batches)

    broken, gradients = _not_finite_flags(run, adversary, parts)
    notes = torch.tensor(list(notices()), dtype=torch.bool)
    losses_broken, gradients_broken, *noted = any_rank(
        torch.cat([broken, notes.to(broken.device)]), run.rank_info.device
    )
    # Under fp16 the scaler skips updates whose gradients overflow, and lowers its scale; only where the scale is small
    # already are such gradients a failure. To read it waits for the device.
    overflowed = gradients_broken and run.scaler.is_enabled()
    overflowed = overflowed and min(scaler.get_scale() for scaler in run.scalers.values()) >= _SMALLEST_SCALE
    if losses_broken or (gradients_broken and not overflowed):
        raise_together(_not_finite(iteration, parts, gradients, batches) if broken.any() else None)
    if student_learns:
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(run.trained_parameters(), train.grad_clip, gradients)
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if adversary is not None:
        adversary.step()
    run.after_update(iteration)
    run.iteration = iteration
    return parts, noted


def _accumulate(
    run: TrainingRun, batch: Batch, iteration: int, student_learns: bool, count: int, last: bool
) -> dict[str, torch.Tensor]:
    """Adds the gradients of one of `count` micro-batches; returns the parts of its losses, detached."""

    def scaled(loss: torch.Tensor) -> torch.Tensor:
        return run.scaler.scale(loss / count)

    with synchronising(run.model, last), torch.set_grad_enabled(student_learns):
        output = run.model(batch, iteration)
        parts = {**output.parts, "l_total": output.total.detach()}
        loss = scaled(output.total)
        if run.adversary is not None and batch.gt is not None:
            judged, gradient = run.adversary.play(
                sharpened(batch.gt) if run.options.gan_gt_usm else batch.gt,
                output.sr,
                guided=scaled if student_learns else None,
                share=1 / count,
                last=last,
            )
            parts |= judged
            if gradient is not None:
                parts["l_total"] = parts["l_total"] + run.adversary.weight * judged["l_adv"]
                # The product's derivative is `gradient`, which thus joins those of the losses. Handed to
                # torch.autograd.backward as it is, it would have torch import SymPy, for half a second.
                loss = loss + (output.sr * gradient).sum()
        if student_learns:
            loss.backward()
    return parts


def fit(run: TrainingRun, folder: CheckpointFolder, log: RunLog | None, stop: StopRequest, status: RunStatus) -> None:
    """Trains to `total_iter`, logging, saving and validating on schedule.

    With `val: patience` it may end earlier. Raises Preempted if asked to stop; any other UserError if there are no more
    batches, validation failed, or figures cannot be written. But for a NonFiniteError, the state is saved before, if
    there was an iteration.
    """
    options, rank_info, total = run.options, run.rank_info, run.options.train.total_iter
    limit = options.datasets["train"].skip_bad_images
    skipped = SkippedImages(options.experiment_folder, limit, run.skipped)
    if any_rank([bool(stop)], rank_info.device)[0]:
        raise Preempted(f"preempted before iteration {run.iteration + 1}: nothing to save; go on with --auto_resume")
    stopping = False
    if run.validation_due:  # an interrupted validation is repeated, and noted as done
        stopping = not validate(run, folder, log, stop)
        if not stopping:
            _save(run, folder, status)
    since = run.iteration
    ends = stopping or run.out_of_patience
    with closing(PrefetchedBatches(run.loader.until(lambda: bool(stop)) if not ends else ())) as feed:
        feed.fill()
        _raise_after_saving(feed.failure)
        for batches in feed:
            placed = [batch.to(rank_info.device, options.channels_last) for batch in batches]
            parts, (stopping, failing) = train_step(run, placed, lambda: (bool(stop), feed.failure is not None))
            skipped.note(batches)
            last = run.iteration == total
            logging = run.is_due(options.logger.print_freq) or last
            saving = run.is_due(options.logger.save_checkpoint_freq) or last or stopping or failing
            if log is not None:
                log.tick()
            status.tick(run.iteration)
            due = run.is_due(options.val.val_freq)  # it may end in a checkpoint, which has the list
            run.validation_due = (due or last) and bool(run.validation)
            try:
                if logging:
                    _log_step(run, log, parts, feed.seconds_waited() / (run.iteration - since))
                    since = run.iteration
                new = skipped.share() if logging or saving or due else []
                failing = failing or skipped.too_many is not None
                if run.validation_due and not (stopping or failing):
                    stopping = not validate(run, folder, log, stop)
            except UserError as error:  # all ranks have the same
                if not isinstance(error, NonFiniteError):
                    _save(run, folder, status)
                    error.extend(after=f"; saved {run.iteration}.state")
                raise
            if saving or stopping or failing or run.out_of_patience:
                _save(run, folder, status)
            if log is not None:
                for line in new:
                    log.line(f"left out: {line}")
            if failing:
                _raise_after_saving(skipped.too_many or feed.failure, run)
            if stopping or run.out_of_patience:
                break
    if stopping and not run.out_of_patience and (run.iteration < total or run.validation_due):
        raise Preempted(f"preempted: saved {run.iteration}.state; go on with --auto_resume")
    on_master(lambda: folder.save_named("latest", run.student_weights()))


def train_pipeline(
    source: str | Path | Mapping[str, Any],
    *,
    launcher: Launcher = "none",
    auto_resume: bool = False,
    allow_config_change: bool = False,
    debug: bool = False,
    force_yml: Sequence[str] = (),
    root: str | Path = ".",
) -> TrainingResult:
    """Trains what an options file, or the same content as a dict, describes.

    Args:
        source: path of the file, or the options themselves.
        launcher: 'none' for one process, 'pytorch' under torchrun, 'slurm' under srun.
        auto_resume: continue from the newest intact checkpoint of the run's name, if there is one.
        allow_config_change: resume although options or images changed so that it is another experiment.
        debug: prefix the name with `debug_`; log, validate and save often.
        force_yml: changes to the options such as `train:total_iter=100`.
        root: the folder of `experiments` and `tb_logger`.

    Raises:
        UserError: one of its kinds, for anything that the user can mend.
    """
    warnings: list[str] = []

    def load() -> list[Options]:
        overrides, warn = force_yml, warnings.append
        return [load_options(source, overrides=overrides, training=True, debug=debug, root=Path(root), warn=warn)]

    flags = {"--auto_resume": auto_resume, "--allow_config_change": allow_config_change}
    notice = "stopping after this iteration, with a checkpoint; Ctrl+C again stops at once, without"
    # In this order: while the ranks wait for each other there is nothing to save, and a signal ends them at once.
    with joined(launcher, load, flags) as ((options,), rank_info), StopRequest(notice) as stop:
        return _train(options, rank_info, auto_resume, allow_config_change, stop, warnings)


def _train(
    options: Options,
    rank_info: RankInfo,
    auto_resume: bool,
    allow_config_change: bool,
    stop: StopRequest,
    warnings: Sequence[str],
) -> TrainingResult:
    folder, curves, status = options.experiment_folder, options.tensorboard_folder, RunStatus(options)
    if rank_info.device.type == "cpu":
        keep_freed_memory()
    checkpoints = CheckpointFolder(folder, options.logger.keep_checkpoints)

    def note(error: UserError) -> None:
        with suppress(UserError), status.followed(), checkpoints.named_in_failures():
            raise error

    def files_read() -> dict[str, str]:
        found = {f"SHA-256 of {option}": digest for option, digest in input_digests(options).items()}
        if resume is not None:
            found[f"files of checkpoint {resume.path}"] = sha256_of(resume.path.with_suffix(".json"))
        return found

    written = [folder]
    if options.logger.use_tb_logger or os.path.lexists(curves):
        written.append(curves)  # which is renamed where it is not continued
    with (
        owned(written) as own_again,
        status.followed(),
        checkpoints.named_in_failures(),
        following(rank_info.watch, note) as others_may_end,
    ):
        resume, remarks = resuming.find_checkpoint(options, rank_info, auto_resume)
        goes_on = checkpoints.holds(resume)
        on_master(lambda: check_training_folders(options, goes_on))
        require_equal(files_read)
        status.begin(resume)
        options, recognised = recognise_networks(options)
        if resume is not None:
            remarks += resuming.check_options(resume, options, rank_info, allow_config_change)
        run = TrainingRun(options, rank_info, resume)  # before anything is written: what does not fit shows here
        if resume is not None:
            remarks += resuming.check_images(resume, run.images, allow_config_change)
        training = {f"training images ({key})": dataset for key, dataset in run.training_sets.items()}
        require_equal_images({**training, **run.validation})
        fitting = check_fit(run)
        remarks += check_all_images(run, stop)
        remarks += run.calibrate(stop)
        if resume is not None:
            remarks += resuming.check_skipped(resume, run, allow_config_change)
        remarks += on_master(lambda: prepare_training(run, resume))
        own_again()
        status.update(state="running")
        with open_log(folder, "train", options.name, goes_on=resume is not None) as logger:
            for remark in filter(None, (rank_info.remark, *warnings, *remarks)):
                logger.warning(remark)
            for remark in (*recognised, *run.remarks, *fitting):
                log_remark(logger, remark)
            describe(run, logger, resume)
            with open_run_log(run, logger) as log:
                try:
                    fit(run, checkpoints, log, stop, status)
                except BaseException as error:
                    status.ended(error)  # closing logs may take longer than this process is left to live
                    raise
                finally:
                    others_may_end.set()
            if run.out_of_patience and run.iteration < options.train.total_iter:
                status.ending = run.why_it_ended()
                logger.info(status.ending)
            logger.info(f"End of training after {run.iteration} iterations; weights in {options.models_folder}")
        status.update(iteration=run.iteration)
    return TrainingResult(folder, run.iteration, run.best)


def _not_finite_flags(
    run: TrainingRun, adversary: Adversary | None, parts: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether this rank's losses, and its gradients, are not finite, (2,), and the norm of the student's gradients.

    All stays on the device, which is not waited for.
    """
    gradients = [parameter.grad for parameter in run.trained_parameters() if parameter.grad is not None]
    if gradients:
        run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm(gradients)
    others = adversary.gradients() if adversary is not None else []
    losses = [parts["l_total"], *(part for name, part in parts.items() if name.startswith("l_d_"))]
    norms = [norm.to(run.rank_info.device), torch.nn.utils.get_total_norm(others).to(run.rank_info.device)]
    flags = [~torch.isfinite(torch.stack([value.float() for value in values])).all() for values in (losses, norms)]
    return torch.stack(flags), norm


def _not_finite(
    iteration: int, parts: Mapping[str, torch.Tensor], norm: torch.Tensor, batches: Sequence[Batch]
) -> NonFiniteError:
    """Names the losses that are not finite, the others, and the images. Gradients are averaged over ranks already."""
    losses = {name: float(part) for name, part in parts.items()}
    broken = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
    first_hand = bool(broken)
    if not math.isfinite(norm):
        broken.append(f"gradient norm = {float(norm)}")
    sound = ", ".join(f"{name} = {value:.4g}" for name, value in losses.items() if math.isfinite(value))
    paths = [path for batch in batches for path in batch.lq_paths]
    files = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    error = NonFiniteError(
        f"iteration {iteration}: {', '.join(broken) or 'a gradient of the discriminator = nan'}"
        f"{f' ({sound})' if sound else ''}; nothing was updated; batch: {files}"
    )
    error.first_hand = first_hand
    return error


def _save(run: TrainingRun, folder: CheckpointFolder, status: RunStatus) -> None:
    """Saves on rank 0; where that fails, every rank ends. All ranks must call."""
    on_master(lambda: run.save(folder))
    status.update(state="running", iteration=run.iteration, checkpoint=f"{run.iteration}.state")


def _raise_after_saving(failure: Exception | None, run: TrainingRun | None = None) -> None:
    """Ends the run on all ranks with a failure of any, if there is one; `run` is given where its state was saved."""
    try:
        raise_together(failure)
    except UserError as error:
        if run is not None:
            error.extend(after=f"; saved {run.iteration}.state")
        raise


def _log_step(run: TrainingRun, log: RunLog | None, parts: Mapping[str, torch.Tensor], waited: float) -> None:
    """Averages the parts over ranks and logs them; all ranks must call. A rank may have parts that others have not."""
    values = torch.stack([part.double() for part in parts.values()]).tolist()
    of_ranks: dict[str, list[float]] = {}
    for of_rank in gather_objects(dict(zip(parts, values, strict=True))):
        for name, value in of_rank.items():
            of_ranks.setdefault(name, []).append(value)

    def write() -> None:
        if log is not None:
            rates = run.set_learning_rates(run.iteration)
            epoch, _, _ = run.loader.epoch_at(run.iteration)
            averages = {name: sum(found) / len(found) for name, found in of_ranks.items()}
            log.step(run.iteration, epoch, rates, averages, waited, run.name_of_set(run.iteration))

    on_master(write)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv, training=True)
    train_pipeline(
        arguments.opt,
        launcher=arguments.launcher,
        auto_resume=arguments.auto_resume,
        allow_config_change=arguments.allow_config_change,
        debug=arguments.debug,
        force_yml=arguments.force_yml or (),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

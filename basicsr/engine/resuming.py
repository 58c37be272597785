"""From which checkpoint a run goes on, whether it is still the same run then, and when it may begin anew."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.config.load import Normalised, load_options, no_warning, todays_name
from basicsr.config.schema import Options, flat, thaw
from basicsr.config.yaml_files import document_from_text
from basicsr.distill.base import criterion_scope
from basicsr.engine.checkpoint import (
    SUPERSEDED,
    Checkpoint,
    CheckpointFolder,
    UnreadableFolderError,
    is_network,
    names_in,
)
from basicsr.engine.inputs import TEACHER_CACHE, input_digests
from basicsr.engine.logs.run_log import STATUS, launched_by_us
from basicsr.engine.precision_choice import kept_precision
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.process.meeting import restarts
from basicsr.engine.run_folder import RECORD
from basicsr.losses.basic_loss import batch_scope_of
from basicsr.utils.dist_util import gather_objects, on_master, raise_together
from basicsr.utils.errors import CheckpointError, OptionsError, UserError
from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.text import printable

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

# Options that may change without another course of the training. Which images there are, and what is in the files of
# weights, is compared by itself, wherever they lie.
_WITHOUT_EFFECT = (
    *("name", "num_gpu", "find_unused_parameters", "crop_border", "skip_missing", "train.total_iter"),
    *("logger.", "val.", "datasets.val", "dist_params.", "report.", "networks."),
    *("path.experiments_root", "path.results_root", "path.resume_state", "path.allow_random_teacher"),
    *("path.pretrain_network_", "path.param_key_g", "path.param_key_d", "path.strict_load_"),
    *("datasets.train.name", "datasets.train.dataroot_", "datasets.train.io_backend.", "datasets.train.meta_info_file"),
    *("datasets.train.filename_tmpl", "datasets.train.num_worker_per_gpu", "datasets.train.prefetch_mode"),
    *("datasets.train.num_prefetch_queue", "datasets.train.pin_memory", "datasets.train.persistent_workers"),
    *("datasets.train.dataset_enlarge_ratio", "datasets.train.check_images", "datasets.train.skip_bad_images"),
    *("datasets.train.device", "datasets.train.degradation.device"),
)
# Ignored in a run that goes on: its checkpoint has these networks.
_FROM_THE_CHECKPOINT = ("path.pretrain_network_g", "path.pretrain_network_d")
# Ignored where both runs use a teacher cache: the caches are compared instead.
_OF_THE_TEACHER = ("network_t", "path.pretrain_network_t", "path.param_key_t")
_FURTHER_SET = re.compile(r"datasets\.train_\w+\.")
_STEP_OF_SEVERAL = re.compile(r"\.degradation\[\d+\]")
_BATCH = ("datasets.train.batch_size_per_gpu", "datasets.train.mini_batch_sizes", "train.accumulate")


def find_checkpoint(options: Options, rank_info: RankInfo, auto_resume: bool) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from, as rank 0 chooses: `--auto_resume`'s newest one, else `path: resume_state`.

    Processes that torchrun restarted go on with what they had begun, asked or not. Returns remarks too; raises
    CheckpointError where `resume_state` cannot be used, none of the run's checkpoints is intact, or all are missing.
    """
    restarted = any(gather_objects(restarts() > 0))
    kept: list[Checkpoint] = []

    def choose() -> tuple[str | None, list[str]]:
        checkpoint, remarks = _choose(options, auto_resume or (restarted and launched_by_us(options.experiment_folder)))
        if checkpoint is None:
            return None, remarks
        kept.append(checkpoint)
        return str(checkpoint.path), remarks

    path, remarks = on_master(choose)
    if path is None:
        return None, remarks
    failure: UserError | None = None
    if not rank_info.is_master:
        try:
            kept.append(_folder_of(Path(path)).load(Path(path)))
        except CheckpointError as error:
            failure = error
    raise_together(failure)
    if kept[0].iteration > options.train.total_iter:
        raise CheckpointError(
            f"{path} was saved after iteration {kept[0].iteration}, train: total_iter is {options.train.total_iter};"
            " raise it, or start a run of another name"
        )
    return kept[0], remarks


def check_options(resume: Checkpoint, options: Options, rank_info: RankInfo, allow: bool) -> list[str]:
    """Compares a run's options, and the weights that they name, with those saved; returns a line for each difference.

    Raises OptionsError where differences change the course of the training, and `allow` is not set.
    """
    try:
        grave, slight = _changes(resume, options, rank_info)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"{resume.path} cannot be resumed: its options are of another kind ({error})") from error
    return [*_accepted(resume, grave, allow), *(_remark(resume, line) for line in slight)]


def _changes(resume: Checkpoint, options: Options, rank_info: RankInfo) -> tuple[list[str], list[str]]:
    """What changes the course of the training, and what does not."""
    state = resume.state
    before, after = _saved_options(resume), flat(thaw(options))
    files = input_digests(options)
    known = {todays_name(option): digest for option, digest in state.get("files", files).items()}
    ignored = _OF_THE_TEACHER if TEACHER_CACHE in known and TEACHER_CACHE in files else ()
    grave: list[str] = []
    slight: list[str] = []
    kept = kept_precision(state) or {}
    before, after = (_in_force(options, kept) for options in (before, after))
    for key in sorted({*before, *after}):
        of_any_set = _FURTHER_SET.sub("datasets.train.", key)
        if of_any_set not in _BATCH and not key.startswith(ignored) and before.get(key) != after.get(key):
            line = f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
            of_any_step = _STEP_OF_SEVERAL.sub(".degradation", of_any_set)
            harmless = of_any_step.startswith(_WITHOUT_EFFECT) or key in files or key in known
            (slight if harmless else grave).append(line)
    (images_before, old), (images_after, new) = (
        _images_to_an_iteration(before, state.get("world_size", 1)),
        _images_to_an_iteration(after, rank_info.world_size),
    )
    if old != new:
        cut_alike = before.get("train.accumulate", 1) == after.get("train.accumulate", 1)
        train = options.train
        scopes = {criterion_scope(block) for block in train.loss_blocks.values()}
        scopes |= {batch_scope_of(METHOD_REGISTRY.get(block["type"]), block) for block in train.distill.values()}
        if train.adversarial_opt is not None:
            scopes.add("all ranks")  # a discriminator's batch normalisation sees one batch of all ranks at a time
        alike = scopes <= {"image"} or (cut_alike and "one rank" not in scopes)
        harmless = images_before == images_after and alike
        (slight if harmless else grave).append(f"images to an iteration: {old} -> {new}")
    for option in sorted({*known, *files} - {*_FROM_THE_CHECKPOINT}):
        if option not in known and option not in after:
            continue  # a file that no option names, which older states do not list
        theirs, ours = (digests[option][:12] + "..." if option in digests else "none" for digests in (known, files))
        if option not in ignored and known.get(option) != files.get(option):
            grave.append(f"content of {option}: SHA-256 {theirs} -> {ours}")
    return grave, slight


def check_images(resume: Checkpoint, images: Mapping[str, Any], allow: bool) -> list[str]:
    """Compares the number and digests of a run's training images with those saved; raises and returns as above."""
    known = resume.state.get("images", {})
    differing = [
        name for name, value in images.items() if None not in (value, known.get(name)) and known[name] != value
    ]
    for names in [name for name in differing if name.endswith("names")]:  # then image 3 is another
        pixels = f"{names.removesuffix('names')}pixels"
        differing = [name for name in differing if not name.startswith(pixels)]
    lines = [f"training images: {name} {known[name]} -> {images[name]}" for name in differing]
    return _accepted(resume, lines, allow)


def check_skipped(resume: Checkpoint, run: TrainingRun, allow: bool) -> list[str]:
    """Leaves out the images that were left out when the checkpoint was saved, even if they are readable by now.

    So the batches are those of a run that was not stopped. All ranks must call. Returns a line for each image; raises
    CheckpointError where the dataset does not have these samples, OptionsError where none may be skipped any more, or
    more images are unusable than then, and `allow` is not set.
    """
    saved: dict[int, list[str]] = resume.state.get("skipped", {})
    known = resume.state.get("images", {})
    which = [name for name in run.images if name.endswith(("images", "names"))]
    if any(known.get(name, run.images[name]) != run.images[name] for name in which):
        return []  # other samples, as `check_images` has said
    count = run.loader.num_samples
    if saved and max(saved) >= count:
        raise CheckpointError(f"{resume.path} cannot be used: it leaves out sample {max(saved)}, there are {count}")
    lines = []
    levels = ("none", "headers", "full")
    before = _saved_options(resume).get("datasets.train.check_images")
    now = run.options.datasets["train"].check_images
    closer = before not in levels or levels.index(now) > levels.index(before)  # then more may be found
    if "skipped" in resume.state and not closer:
        new = sorted(set(run.skipped) - set(saved))
        lines = [f"training images: cannot be used any more: {note}" for index in new for note in run.skipped[index]]
    can_skip = run.options.datasets["train"].skip_bad_images > 0
    if not can_skip:
        lines += [f"training images: left out until now: {note}" for index in sorted(saved) for note in saved[index]]
    remarks = _accepted(resume, lines, allow)
    for index in sorted(set(saved) - set(run.skipped)) if can_skip else ():
        run.loader.leave_out((index, note) for note in saved[index])
        run.skipped[index] = list(saved[index])
        remarks += [f"left out still, as before {resume.path.name}: {note}" for note in saved[index]]
    return remarks


def _accepted(resume: Checkpoint, changes: list[str], allow: bool) -> list[str]:
    """Remarks on changes that make it another experiment; OptionsError on all ranks unless it is allowed."""
    refusal: OptionsError | None = None
    if changes and not allow:
        lines = "\n".join(f"  {line}" for line in changes)
        refusal = OptionsError(
            f"since {resume.path.name} was saved, this has changed and makes it another experiment:\n{lines}\n"
            "put it back, or go on all the same with --allow_config_change, or start a run of another name"
        )
    raise_together(refusal)
    return [_remark(resume, line) for line in changes]


def _remark(resume: Checkpoint, change: str) -> str:
    return f"changed since {resume.path.name} was saved: {change}"


def _choose(options: Options, auto_resume: bool) -> tuple[Checkpoint | None, list[str]]:
    if auto_resume:
        try:
            checkpoint, remarks = CheckpointFolder(options.experiment_folder).latest()
            if checkpoint is not None:
                gone = newer_that_are_gone(options.experiment_folder, checkpoint.iteration)
                return checkpoint, [*remarks, *gone]
            refuse_new_start(options)
        except UnreadableFolderError as error:
            error.extend(after="; to begin anew on purpose, start without --auto_resume")
            raise
    if options.path.resume_state is not None:
        # The networks lie beside the file, not beside a link to it.
        path = Path(os.path.realpath(options.path.resume_state))
        return _folder_of(path).load(path), []
    return None, []


def _folder_of(state: Path) -> CheckpointFolder:
    return CheckpointFolder(state.absolute().parent.parent)


def _saved_options(resume: Checkpoint) -> dict[str, Any]:
    """The options of a checkpoint, with the defaults of keys that are younger than it."""
    text = resume.state.get("options")
    try:
        document = document_from_text(str(text), f"the options in {resume.path}")
    except OptionsError as error:
        raise CheckpointError(f"{resume.path} cannot be resumed: {error}") from error
    try:
        return flat(thaw(load_options(document.data(), training=True, paths=False, warn=no_warning)))
    except OptionsError:  # of a version that knew other keys
        saved, today = flat(document.data()), flat(Normalised(document, training=True).data)
        return {key: today[key] for key in today if key in saved or key.startswith("train.distill.")}


def _in_force(options: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """Flat options with the run's precision in place of `auto`; amp_teacher only where it differs from amp."""
    rest = {key: value for key, value in options.items() if key not in ("amp", "amp_teacher")}
    amp = options.get("amp", "none")
    precision = {"amp": amp, "amp_teacher": options.get("amp_teacher") or amp}
    precision = {key: kept.get(key, value) if value == "auto" else value for key, value in precision.items()}
    if precision["amp_teacher"] == precision["amp"]:
        del precision["amp_teacher"]
    return {**rest, **precision}


def _images_to_an_iteration(options: Mapping[str, Any], ranks: int) -> tuple[list[int], str]:
    """Images of each stage of progressive training, and the same as text with the factors: '32 (4 ranks x 8)'."""
    batches = list(options.get("datasets.train.mini_batch_sizes") or [])
    batches = batches or [options.get("datasets.train.batch_size_per_gpu", 1)]
    accumulate = options.get("train.accumulate", 1)
    factors = f"{ranks} rank{'s' if ranks > 1 else ''}" + (f" x {accumulate} batches" if accumulate > 1 else "")
    images = [ranks * accumulate * batch for batch in batches]
    return images, ", ".join(f"{count} ({factors} x {batch})" for count, batch in zip(images, batches, strict=True))


def refuse_new_start(options: Options) -> None:
    """Raises CheckpointError where a run without a checkpoint must not begin anew by itself: an earlier one has saved.

    A run that was stopped before its first checkpoint begins anew: its status.json says that none was saved. All else
    that runs leave means that something is missing: a disk, a link's target, files that were removed.
    """
    folder, curves = options.experiment_folder, options.tensorboard_folder
    names, lines = ([name for name in names_in(at) if not name.startswith(".")] for at in (folder, curves))
    models = names_in(folder / "models")
    signs = [f"models/{name}" for name in models if is_network(name) or name == "net_g_latest.pth"]
    signs += [name for name in names if name.startswith(SUPERSEDED)]
    if not names:  # at most our locks
        signs += [f"{curves} has its curves"] if lines else []
    elif STATUS in names:
        status = _json(folder / STATUS)
        if not isinstance(status, dict):
            signs.append(f"{STATUS} cannot be read")
        elif status.get("checkpoint") is not None:
            signs.append(f"{STATUS} says that {str(status['checkpoint'])[:100]} was saved")
        elif status.get("state") == "finished" or status.get("iteration") != 0:
            signs.append(f"{STATUS} says that it was {str(status.get('state'))[:20]}")
        signs += [f"{name} is not there" for name in ("models", "training_states") if name not in names]
    else:
        if RECORD in names:
            try:
                begun = [start["iteration"] for start in _json(folder / RECORD)["starts"]]
                if any(iteration != 0 for iteration in begun):
                    signs.append(f"{RECORD} says that it went on from iteration {str(begun[-1])[:20]}")
            except (KeyError, TypeError):
                signs.append(f"{RECORD} cannot be read")
        left = [name for name in names if name.endswith(".log") or name in ("history.jsonl", "visualization")]
        left += [f"models/{name}" for name in models if name.endswith(".pth") and not name.startswith(".")]
        signs += [f"{name} is there, {STATUS} is not" for name in left]
    if signs:
        shown = printable("; ".join(signs[:3]))
        raise CheckpointError(
            f"{folder} has no training state to go on from, but a run was there ({shown}): mount or put back what is"
            " missing; to begin anew, move away what is there, or start without --auto_resume, which renames it"
        )


def newer_that_are_gone(folder: Path, iteration: int) -> list[str]:
    """A remark where status.json names a later checkpoint than the one to go on from, of which nothing is left."""
    content = _json(folder / STATUS)
    saved = re.fullmatch(r"([0-9]{1,17})\.state", str(content.get("checkpoint")) if isinstance(content, dict) else "")
    if saved is None or int(saved[1]) <= iteration:
        return []
    if {saved[0], f"{saved[1]}.json"} & set(names_in(folder / "training_states")):
        return []  # it was found damaged
    return [
        f"{STATUS} says that {saved[0]} was saved, which is not there; using {iteration}.state;"
        f" {int(saved[1]) - iteration} iterations redone"
    ]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None

"""A training run: everything the loop works with, put together from the options, saved and restored as one."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from basicsr.archs.luma import LumaNetwork
from basicsr.config.load import resolved_yaml
from basicsr.config.schema import Options, thaw
from basicsr.data import build_eval_dataset, build_train_loader
from basicsr.data.checks.notes import fingerprint
from basicsr.data.mixing import sets_of
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.inputs import check_cache_key, input_digests
from basicsr.engine.logs.metric_writers import check_packages
from basicsr.engine.precision_choice import choose_precision, kept_precision, settled
from basicsr.engine.process.command import StopRequest
from basicsr.engine.process.distributed import RankInfo, require_equal, weights_digest
from basicsr.engine.quantized_training import add_quantizers, calibrate_student, check_start
from basicsr.engine.state_checks import (
    StateMismatch,
    check_groups,
    check_optimizer,
    check_scaler,
    check_tensors,
    part_of,
)
from basicsr.metrics import better_direction, prepare_metrics
from basicsr.metrics.evaluator import Evaluation
from basicsr.models import build_adversary, build_model
from basicsr.optim.optimizers import (
    HEADS,
    Ema,
    build_optimizer,
    changed_decay,
    load_optimizer,
    regrouped,
    without_moments,
)
from basicsr.optim.parts import FrozenParts, grouped
from basicsr.optim.schedules import build_schedule, warmed_up
from basicsr.quantization.records import to_record
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import CheckpointError, NonFiniteError, OptionsError
from basicsr.utils.misc import size_of
from basicsr.utils.randomness import seed_everything
from basicsr.weights.spandrel_networks import SpandrelNetwork

_WHOSE = {"g": "", "d": "discriminator's "}


class TrainingRun:
    """State and parts of one run, on one rank. `resume` is the checkpoint to continue, or None."""

    def __init__(self, options: Options, rank_info: RankInfo, resume: Checkpoint | None) -> None:
        self.options, self.rank_info, self.options_text = options, rank_info, resolved_yaml(options)
        self.iteration = resume.iteration if resume else 0
        self.best: dict[str, dict[str, dict[str, float]]] = {}  # by dataset and metric: the value and its iteration
        self.progress: dict[str, float] = {}  # of `val: best`: value, its iteration, validations without a better one
        self.validation_due = False  # whether the last finished iteration still has to be validated
        self.skipped: dict[int, list[str]] = {}  # samples that training does without, 'path: reason' each
        train, path = options.train, options.path
        self.files = input_digests(options)  # SHA-256 of the files of weights that the options name
        self.cache = on_master(lambda: check_cache_key(options, self.files))  # None without a teacher cache
        self.precision = choose_precision(options, rank_info.device, resume.state if resume is not None else None)
        self._kept_precision = self.precision.kept()
        computed = settled(options, self._kept_precision)
        check_packages(options)
        prepare_metrics(options.val.metrics, rank_info.device)
        seed_everything(options.manual_seed)
        self._bare, self.remarks = build_model(computed, rank_info.device)
        self.network: nn.Module = self._bare.network
        self.terms, self.teacher = self._bare.terms, self._bare.teacher
        check_start(options, self.network, resume is not None)
        self._lacks_ranges = train.quantize is not None and (
            resume is None or "network_g" in path.ignore_resume_networks
        )
        if train.quantize is not None:  # after the terms have seen the float network
            saved = resume.networks.get("g") if resume is not None else None
            self.remarks += add_quantizers(options, self.network, saved, calibrated=not self._lacks_ranges)
        if self.cache is not None:
            needed = any(term.needs_teacher for term in self.terms.values())
            use = f": {self.cache}; the teacher itself is not loaded"
            unused = " is not needed: no loss reads the teacher's output; leave it out"
            self.remarks.append(f"teacher_cache {options.teacher_cache}{use if needed else unused}")
        distributed = rank_info.world_size > 1
        self.adversary, remarks = build_adversary(computed, rank_info.device, distributed)
        self.remarks += remarks
        self.ema = Ema(self.network, train.ema_decay) if train.ema_decay > 0 else None
        for name, term in self.terms.items():
            if term.needs_average and self.ema is None:
                raise OptionsError(
                    f"train.ema_decay is 0, and {name} ({type(term).__name__}) follows the moving average of the"
                    " weights; set ema_decay, such as 0.999, or let it follow the student"
                )
            if term.needs_start and resume is None and not (path.pretrain_network_g or path.allow_random_teacher):
                raise OptionsError(
                    f"path.pretrain_network_g is required: train.distill.{name} ({type(term).__name__}) learns from the"
                    " network as the run begins, which is random; give the file with its weights, or remove the term"
                )
        self._frozen = FrozenParts(self._bare.trained_network, train.freeze, train.freeze_until)
        if self._frozen.remark:
            self.remarks.append(self._frozen.remark)
        self.optimizer = self._build_optimizer()
        self.scaler = self._bare.precision.scaler()
        self._optimizers, self.scalers = {"g": self.optimizer}, {"g": self.scaler}
        if self.adversary is not None:
            self.scalers["d"] = self.adversary.scaler
            if train.train_adversary:
                assert train.optim_d is not None
                discriminator = {"discriminator": self.adversary.discriminator.parameters()}
                self.adversary.optimizer = self._optimizers["d"] = build_optimizer(train.optim_d, discriminator)
        self._schedule = build_schedule(train.scheduler)
        if resume is not None:
            self.restore(resume)
        self._frozen.hold(self.iteration + 1)
        require_equal(self._weight_digests)  # else DistributedDataParallel would make them equal without an error
        self.model = self._distributed(self._bare) if distributed else self._bare  # network and terms
        self.loader = build_train_loader(
            options.datasets["train"],
            options.further_sets,
            seed=options.manual_seed,
            rank=rank_info.rank,
            world_size=rank_info.world_size,
            start_iteration=self.iteration,
            total_iterations=train.total_iter,
            accumulate=train.accumulate,
            on_gpu=rank_info.device.type == "cuda",
        )
        keys, sets = options.datasets_of("train"), sets_of(self.loader.dataset)
        self.training_sets = dict(zip(keys, sets.values(), strict=True))  # datasets by their keys in the options
        self.images = fingerprint(self.loader.dataset)  # their number and a digest of their names
        self.validation = {block.name: build_eval_dataset(block) for block in options.datasets_of("val").values()}

    def calibrate(self, stop: StopRequest) -> list[str]:
        """Under `train: quantize` sets the ranges of a student that begins; see `calibrate_student`. All must call."""
        if not self._lacks_ranges:
            return []
        averages = [self.ema.network] if self.ema is not None else []
        remarks = calibrate_student(self.options, [self.network, *averages], stop)
        self._lacks_ranges = False
        return remarks

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the student's optimizer updates: the network's and the heads'."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def name_of_set(self, iteration: int) -> str:
        """The name of the training set that iteration `iteration`, from 1, takes; empty where there is only one."""
        if self.loader.mixture is None:
            return ""
        names = [block.name for block in self.options.datasets_of("train").values()]
        return names[self.loader.mixture.set_of(iteration - 1)]

    def is_due(self, frequency: int | None) -> bool:
        """Whether something done every `frequency` iterations is due after the present one; never where None."""
        return frequency is not None and self.iteration % frequency == 0

    def begin_iteration(self, iteration: int) -> None:
        """Sets the learning rates of iteration `iteration`, from 1, and training mode, but for what is frozen."""
        self.set_learning_rates(iteration)
        if self._frozen.hold(iteration) and self.model is not self._bare:
            self.model = self._distributed(self._bare)  # it averages gradients of what was trained when it was made
        self.model.train()
        self._frozen.keep_statistics(iteration)

    def set_learning_rates(self, iteration: int) -> dict[str, float]:
        """Sets the rates of iteration `iteration`, from 1, and returns them by parameter group."""
        rates = {}
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                base = group["initial_lr"]
                rate = self._schedule.rate(base, iteration - 1)
                group["lr"] = warmed_up(rate, base, iteration, self.options.train.warmup_iter)
                rates[group["name"]] = group["lr"]
        return rates

    def after_update(self, iteration: int) -> None:
        """Lets methods and the moving average follow the network; to be called after each iteration's update."""
        self._bare.after_update(iteration)
        if self.ema is not None:
            self.ema.update(self.network)
            self._bare.after_average(self.ema.network, iteration)

    def note_best(self, dataset: str, evaluation: Evaluation) -> list[str]:
        """Updates `best` and returns the metrics that improved."""
        improved = []
        records = self.best.setdefault(dataset, {})
        for metric, value in evaluation.means().items():
            higher = better_direction(self.options.val.metrics[metric]) == "higher"
            old = records.get(metric, {"value": math.nan})["value"]
            if math.isnan(old) or (value > old if higher else value < old):
                records[metric] = {"value": value, "iteration": self.iteration}
                improved.append(metric)
        return improved

    def note_progress(self, metric: str, value: float) -> None:
        """Counts validations until the figure of `val: best` is better than before by more than `min_delta`."""
        before, sign = self.progress, 1 if better_direction(self.options.val.metrics[metric]) == "higher" else -1
        better = not before or sign * (value - before["value"]) > self.options.val.min_delta
        self.progress = (
            {"value": value, "iteration": self.iteration, "waited": 0}
            if better
            else {**before, "waited": before["waited"] + 1}
        )

    @property
    def out_of_patience(self) -> bool:
        """Whether as many validations as `val: patience` allows have passed without a better figure."""
        patience = self.options.val.patience
        return patience is not None and self.progress.get("waited", 0) >= patience

    def why_it_ended(self) -> str:
        """What `out_of_patience` means, for the log."""
        waited, at, value = int(self.progress["waited"]), int(self.progress["iteration"]), self.progress["value"]
        delta = f" by more than {self.options.val.min_delta:g}" if self.options.val.min_delta else ""
        return (
            f"stopped early: {waited} validation{'s' if waited != 1 else ''} since iteration {at} gave no better figure"
            f" than {value:.4f}{delta} (val: patience {self.options.val.patience}); raise val: patience to go on"
        )

    def best_iteration(self) -> int | None:
        """After which iteration the best weights so far were saved; None where nothing was measured yet."""
        chosen = self.options.val.best
        measured = [name for name in self.validation if name in self.best]
        records = self.best.get(chosen.dataset if chosen is not None else next(iter(measured), ""), {})
        metric = chosen.metric if chosen is not None else next(iter(records), None)
        return int(records[metric]["iteration"]) if metric in records else None

    def student_weights(self) -> dict[str, Any]:
        """Content of net_g: `params`, and `params_ema` with EMA. The terms' heads are not in it.

        Beside them stand `network`, the options that build it, and `training`, what it went through: plain values,
        so that the file says what it is wherever it goes.
        """
        content: dict[str, Any] = {"params": _cpu_state(self.network)}
        if self.ema is not None:
            content["params_ema"] = _cpu_state(self.ema.network)
        content["network"] = {**thaw(self.options.network_g), "scale": self.options.scale}
        teacher: str | None
        if self.cache is not None:
            teacher = self.cache.architecture
        elif self.teacher is not None and isinstance(self.teacher.network, (SpandrelNetwork, LumaNetwork)):
            teacher = self.teacher.network.architecture
        else:
            teacher = self.options.network_t["type"] if self.options.network_t is not None else None
        if (quantization := to_record(self.network)) is not None:
            content["quantization"] = quantization
        content["training"] = {
            "name": self.options.name,
            "iteration": self.iteration,
            "total_iter": self.options.train.total_iter,
            "losses": [*self.terms, *(["adversarial"] if self.adversary is not None else [])],
            "teacher": teacher,
            "weights": dict(self.files),
            "best": copy.deepcopy(self.best),
        }
        return content

    def save(self, folder: CheckpointFolder) -> Path:
        """Writes a checkpoint of the present state and returns the path of its state file.

        Random states are not part of it: every draw derives from the seed, the iteration and the sample. Raises
        NonFiniteError where a weight or a moment is not finite, CheckpointError where it cannot be written.
        """
        self._check_finite()
        networks: dict[str, Any] = {"g": self.student_weights()}
        if self.adversary is not None:
            networks["d"] = {"params": _cpu_state(self.adversary.discriminator)}
        state: dict[str, Any] = {
            "terms": _cpu_state(self.terms),
            "optimizers": {label: optimizer.state_dict() for label, optimizer in self._optimizers.items()},
            "scalers": {label: scaler.state_dict() for label, scaler in self.scalers.items()},
            "best": self.best,
            "progress": self.progress,
            "validation_due": self.validation_due,
            "options": self.options_text,
            "world_size": self.rank_info.world_size,
            "images": self.images,
            "files": self.files,
            "skipped": {index: self.skipped[index] for index in sorted(self.skipped)},
            "precision": self._kept_precision,
        }
        return folder.save(self.iteration, networks, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes weights, moments, scales and records from a checkpoint, once all of them were found to fit.

        Raises CheckpointError where a value does not fit the run; nothing was taken then.
        """
        networks, state, ignored = checkpoint.networks, checkpoint.state, self.options.path.ignore_resume_networks
        optimizers: list[tuple[str, dict[str, Any], torch.optim.Optimizer]] = []
        try:
            weights: list[tuple[str, Any, nn.Module]] = [("heads' weights", part_of(state, "terms"), self.terms)]
            if "network_g" not in ignored:
                weights.append(("student's weights", part_of(networks, "g", "params"), self.network))
                if self.ema is not None:
                    weights.append(("moving averages", part_of(networks, "g", "params_ema"), self.ema.network))
            if self.adversary is not None and "network_d" not in ignored:
                given = part_of(networks, "d", "params")
                weights.append(("discriminator's weights", given, self.adversary.discriminator))
            for label, optimizer in self._optimizers.items():
                named = f"{_WHOSE[label]}optimizer"
                saved = check_groups(named, part_of(state, "optimizers", label))
                if label == "g":
                    saved = regrouped(saved, self._parameter_names(), optimizer)
                optimizers.append((named, saved, optimizer))
            scales = {label: part_of(state, "scalers", label) for label in self.scalers}
            best, validation_due = part_of(state, "best"), part_of(state, "validation_due")
            for named, given, module in weights:
                check_tensors(named, given, module)
            for named, given, optimizer in optimizers:
                check_optimizer(named, given, optimizer, checkpoint.iteration)
            kept = kept_precision(state)
            for label, scaler in self.scalers.items():
                if scales[label] != {} or kept is None or kept["amp"] == "fp16":  # other precisions have no scales
                    check_scaler(f"{_WHOSE[label]}loss scaler", scales[label], scaler)
            for _, given, module in weights:
                module.load_state_dict(given)
            self.remarks += changed_decay(optimizers[0][1], self.optimizer)
            for named, given, optimizer in optimizers:
                self.remarks += without_moments(named, given, optimizer)
                load_optimizer(optimizer, given)
            for label, scaler in self.scalers.items():
                if scales[label]:
                    scaler.load_state_dict(scales[label])
        except (StateMismatch, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not fit the options: {' '.join(str(error).split())[:300]};"
                " resume with the options it was saved with, or start a run of another name"
            ) from error
        self.set_learning_rates(checkpoint.iteration)  # it may be saved again before the next iteration sets them
        self.best, self.validation_due, self.progress = best, validation_due, state.get("progress", {})

    def checkpoint_size(self) -> int:
        """About how many bytes a checkpoint will take, also while the optimizers have no moments yet."""
        moments = 0
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                moments += (2 if "betas" in group else 1) * size_of(group["params"])
        return sum(size_of(module.state_dict()) for module in self._saved_modules().values()) + moments

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the student and of the heads, with the groups that the options make of them."""
        train = self.options.train
        student, heads = self._bare.parameters_by_name()
        if train.freeze_until is None:
            self._frozen.hold(1)  # what is frozen for good has no place in the optimizer
        own, settings = grouped([(group.patterns, group.settings) for group in train.param_groups], student, heads)
        taken = {id(parameter) for parameters in own.values() for parameter in parameters}
        rest = {
            label: [parameter for parameter in group.values() if id(parameter) not in taken]
            for label, group in (("student", student), (HEADS, heads))
        }
        optimizer = build_optimizer(train.optim_g, {**rest, **own}, train.weight_decay_heads, train.lr_heads, settings)
        names = {id(parameter): name for name, parameter in (*student.items(), *heads.items())}
        for group in optimizer.param_groups:
            group["names"] = [names[id(parameter)] for parameter in group["params"]]
        return optimizer

    def _distributed(self, model: nn.Module) -> DistributedDataParallel:
        has_statistics = any(isinstance(module, _BatchNorm) for module in model.modules())
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        # PyTorch 2.13 renamed the argument.
        synchronise_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        arguments: dict[str, Any] = {
            "device_ids": [self.rank_info.device] if self.rank_info.device.type == "cuda" else None,
            "find_unused_parameters": self.options.find_unused_parameters,
            "gradient_as_bucket_view": True,
            synchronise_buffers: has_statistics,
        }
        return DistributedDataParallel(model, **arguments)

    def _saved_modules(self) -> dict[str, nn.Module]:
        """What a checkpoint has the weights of, by what messages call it."""
        modules = {"network_g": self.network, "the terms' heads": self.terms}
        if self.ema is not None:
            modules["the moving average"] = self.ema.network
        if self.adversary is not None:
            modules["network_d"] = self.adversary.discriminator
        return modules

    def _parameter_names(self) -> list[str]:
        """Names of trained parameters in the order of states that list none: the network's, then each term's."""
        student, heads = self._bare.parameters_by_name()
        names = {id(weight): name for group in (student, heads) for name, weight in group.items()}
        weights = [*self.network.parameters(), *self.terms.parameters()]
        return [names[id(weight)] for weight in weights if weight.requires_grad]

    def _weight_digests(self) -> dict[str, str]:
        modules = self._saved_modules()
        if self.teacher is not None:
            modules["network_t"] = self.teacher.network
        return {f"SHA-256 of the weights of {name}": weights_digest(module) for name, module in modules.items()}

    def _check_finite(self) -> None:
        """Raises NonFiniteError: a checkpoint must not hold what an update with a finite gradient made infinite."""
        values = {name: list[torch.Tensor](module.parameters()) for name, module in self._saved_modules().items()}
        values["the optimizers"] = [
            value
            for optimizer in self._optimizers.values()
            for moments in optimizer.state.values()
            for value in moments.values()
            if isinstance(value, torch.Tensor)
        ]
        for name, tensors in values.items():
            finite = [torch.isfinite(tensor).all().to(self.rank_info.device) for tensor in tensors]
            if finite and not torch.stack(finite).all():
                raise NonFiniteError(
                    f"iteration {self.iteration}: {name} has values that are not finite after this update; it is not"
                    " saved; lower the learning rate, or set train: grad_clip"
                )


def _cpu_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}

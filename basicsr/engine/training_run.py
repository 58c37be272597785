"""A training run: everything the loop works with, put together from the options, saved and restored as one."""

from __future__ import annotations

import copy
import inspect
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from basicsr.config.schema import Options, thaw
from basicsr.data import build_eval_dataset, build_train_loader
from basicsr.data.checks.digests import fingerprint
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.logs.metric_writers import check_packages
from basicsr.engine.precision_choice import choose_precision, settled
from basicsr.engine.process.agreement import require_equal, weights_digest
from basicsr.engine.process.distributed import RankInfo, on_master
from basicsr.engine.provenance import input_digests
from basicsr.engine.restoring import restore
from basicsr.engine.teacher_cache.matching import check_key
from basicsr.metrics import better_direction, prepare_metrics
from basicsr.metrics.evaluator import Evaluation
from basicsr.models import build_adversary, build_model, recognise_networks
from basicsr.optim.ema import Ema
from basicsr.optim.optimizers import HEADS, build_optimizer
from basicsr.optim.schedules import build_schedule, warmed_up
from basicsr.utils.errors import NonFiniteError, OptionsError
from basicsr.utils.misc import size_of
from basicsr.utils.randomness import seed_everything
from basicsr.weights.spandrel_network import SpandrelNetwork


class TrainingRun:
    """State and parts of one run, on one rank.

    Args:
        options: the whole options.
        rank_info: device and rank.
        resume: the checkpoint to continue, or None.

    Attributes:
        iteration: number of finished iterations.
        network: the network being trained, bare.
        model: the same with its terms, under DistributedDataParallel where there are several ranks.
        teacher: what the network learns from; None where there is none, or its outputs come from a cache.
        precision: in which the networks run.
        cache: whose outputs come from a cache, or None.
        ema: its moving average, or None.
        adversary: the discriminator's side, or None.
        validation: datasets by name.
        best: per dataset and metric, the best value and its iteration.
        images: number of the training images and a digest of their names.
        files: SHA-256 of the files of weights that the options name, by option.
        remarks: what the log should say of the weights that were loaded.
        validation_due: whether the last finished iteration still has to be validated.
        skipped: samples that training does without, 'path: reason' each.
    """

    def __init__(self, options: Options, rank_info: RankInfo, resume: Checkpoint | None) -> None:
        options, self.remarks = recognise_networks(options)
        self.options, self.rank_info = options, rank_info
        self.iteration = resume.iteration if resume else 0
        self.best: dict[str, dict[str, dict[str, float]]] = {}
        self.validation_due = False
        self.skipped: dict[int, list[str]] = {}
        train = options.train
        self.cache = on_master(rank_info, lambda: check_key(options))
        self.precision = choose_precision(options, rank_info, resume.state if resume is not None else None)
        computed = settled(options, self.precision.kept())
        check_packages(options)
        prepare_metrics(options.val.metrics, rank_info.device)
        seed_everything(options.manual_seed)
        bare, remarks = build_model(computed, rank_info.device)
        self.remarks += remarks
        self.network: nn.Module = bare.network
        self.terms, self.teacher = bare.terms, bare.teacher
        self.remarks += self._about_cache()
        self._bare = bare
        distributed = rank_info.world_size > 1
        self.adversary, more = build_adversary(computed, rank_info.device, distributed)
        self.remarks += more
        self.optimizer = build_optimizer(train.optim_g, self._parameter_groups(), train.weight_decay_heads)
        self.scaler = bare.precision.scaler()
        if self.adversary is not None and train.train_adversary:
            assert train.optim_d is not None
            discriminator = {"discriminator": self.adversary.discriminator.parameters()}
            self.adversary.optimizer = build_optimizer(train.optim_d, discriminator)
        self._schedule = build_schedule(train.scheduler)
        self.ema = Ema(self.network, train.ema_decay) if train.ema_decay > 0 else None
        self._check_average()
        if resume is not None:
            restore(self, resume)
        require_equal(self._weights_at_the_start)  # else DistributedDataParallel would make them so without a word
        self.model = self._distribute(bare) if distributed else bare
        self.files = input_digests(options)
        self.loader = build_train_loader(
            options.datasets["train"],
            seed=options.manual_seed,
            rank=rank_info.rank,
            world_size=rank_info.world_size,
            start_iteration=self.iteration,
            total_iterations=train.total_iter,
            accumulate=train.accumulate,
            pin_memory=rank_info.device.type == "cuda",
        )
        self.images = fingerprint(self.loader.dataset)
        self.validation = {block.name: build_eval_dataset(block) for block in options.datasets_of("val").values()}

    def _parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What the student's optimizer updates. A network trained in the student's place is no head."""
        student, heads = list(self.network.parameters()), list[nn.Parameter]()
        for term in self.terms.values():
            (student if term.replaces_student else heads).extend(term.parameters())
        return {"student": student, HEADS: heads}

    def _check_average(self) -> None:
        """Raises OptionsError where a term follows a moving average that is not kept."""
        for name, term in self.terms.items():
            if term.needs_average and self.ema is None:
                raise OptionsError(
                    f"train.ema_decay is 0, and {name} ({type(term).__name__}) follows the moving average of the"
                    " weights; set ema_decay, such as 0.999, or let it follow the student"
                )

    def _weights_at_the_start(self) -> dict[str, str]:
        """Digests of all weights."""
        modules: dict[str, nn.Module | None] = {
            "network_g": self.network,
            "network_t": self.teacher.network if self.teacher is not None else None,
            "network_d": self.adversary.discriminator if self.adversary is not None else None,
            "the losses": self.terms,
            "the moving average": self.ema.network if self.ema is not None else None,
        }
        return {f"SHA-256 of the weights of {name}": weights_digest(module) for name, module in modules.items()}

    def _distribute(self, model: nn.Module) -> DistributedDataParallel:
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

    @property
    def epoch(self) -> int:
        """Passes over the training set, as `dataset_enlarge_ratio` counts them, that are complete."""
        return self.loader.epoch_at(self.iteration).number

    @property
    def evaluated_network(self) -> nn.Module:
        """What validation looks at: the moving average where there is one."""
        return self.ema.network if self.ema is not None else self.network

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the student's optimizer updates: the network's and the heads'."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def is_due(self, frequency: int | None) -> bool:
        """Whether something done every `frequency` iterations is due after the present one; never where None."""
        return frequency is not None and self.iteration % frequency == 0

    def synchronising(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged over ranks in the last micro-batch of an iteration only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def set_learning_rates(self, iteration: int) -> dict[str, float]:
        """Sets the rates of iteration `iteration`, from 1, and returns them by parameter group."""
        rates = {}
        for optimizer in self._optimizers():
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

    def student_weights(self) -> dict[str, Any]:
        """Content of net_g: `params`, and `params_ema` with EMA. The terms' heads are not in it.

        Beside them stand `network`, the options that build it, and `training`, what it went through: plain values,
        so that the file says what it is wherever it goes.
        """
        content: dict[str, Any] = {"params": _cpu_state(self.network)}
        if self.ema is not None:
            content["params_ema"] = _cpu_state(self.ema.network)
        train = self.options.train
        content["network"] = {**thaw(self.options.network_g), "scale": self.options.scale}
        content["training"] = {
            "name": self.options.name,
            "iteration": self.iteration,
            "total_iter": train.total_iter,
            "losses": [*self.terms, *(["adversarial"] if self.adversary is not None else [])],
            "teacher": self._teacher_type(),
            "weights": dict(self.files),
            "best": copy.deepcopy(self.best),
        }
        return content

    def _about_cache(self) -> list[str]:
        folder = self.options.teacher_cache
        if self.cache is None:
            return []
        if not any(term.needs_teacher for term in self.terms.values()):
            return [f"teacher_cache {folder} is not needed: no loss reads the teacher's output; leave it out"]
        return [f"teacher_cache {folder}: {self.cache}; the teacher itself is not loaded"]

    def _teacher_type(self) -> str | None:
        if self.cache is not None:
            return self.cache.architecture
        if self.teacher is not None and isinstance(self.teacher.network, SpandrelNetwork):
            return self.teacher.network.architecture
        return self.options.network_t["type"] if self.options.network_t is not None else None

    def save(self, folder: CheckpointFolder, options_text: str) -> Path:
        """Writes a checkpoint of the present state and returns the path of its state file.

        Random states are not part of it: every draw derives from the seed, the iteration and the sample.

        Raises:
            NonFiniteError: a weight or an optimizer's moment is not finite; nothing was saved.
            CheckpointError: it cannot be written.
        """
        self._check_finite()
        networks: dict[str, Any] = {"g": self.student_weights()}
        state: dict[str, Any] = {
            "terms": _cpu_state(self.terms),
            "optimizers": {"g": self.optimizer.state_dict()},
            "scalers": {"g": self.scaler.state_dict()},
            "best": self.best,
            "validation_due": self.validation_due,
            "options": options_text,
            "world_size": self.rank_info.world_size,
            "images": self.images,
            "files": self.files,
            "skipped": {index: self.skipped[index] for index in sorted(self.skipped)},
            "precision": self.precision.kept(),
        }
        if self.adversary is not None:
            networks["d"] = {"params": _cpu_state(self.adversary.discriminator)}
            state["scalers"]["d"] = self.adversary.scaler.state_dict()
            if self.adversary.optimizer is not None:
                state["optimizers"]["d"] = self.adversary.optimizer.state_dict()
        return folder.save(self.iteration, networks, state)

    def checkpoint_size(self) -> int:
        """About how many bytes a checkpoint will take, also while the optimizers have no moments yet."""
        modules: list[nn.Module] = [self.network, self.terms]
        modules += [self.ema.network] if self.ema is not None else []
        modules += [self.adversary.discriminator] if self.adversary is not None else []
        moments = 0
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                moments += (2 if "betas" in group else 1) * size_of(group["params"])
        return sum(size_of(module.state_dict()) for module in modules) + moments

    def loss_scale(self) -> float:
        """The smallest factor by which fp16's losses are multiplied at present; 1 where nothing is scaled."""
        scalers = [self.scaler] + ([self.adversary.scaler] if self.adversary is not None else [])
        return float(min(scaler.get_scale() for scaler in scalers))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        discriminators = self.adversary.optimizer if self.adversary is not None else None
        return [self.optimizer] + ([discriminators] if discriminators is not None else [])

    def _check_finite(self) -> None:
        """A checkpoint must not hold what an update with a finite gradient has made infinite."""
        parts: dict[str, nn.Module | None] = {
            "network_g": self.network,
            "the terms' heads": self.terms,
            "the moving average": self.ema.network if self.ema is not None else None,
            "network_d": self.adversary.discriminator if self.adversary is not None else None,
        }
        values: dict[str, list[torch.Tensor]] = {
            name: list(module.parameters()) for name, module in parts.items() if module is not None
        }
        values["the optimizers"] = [
            value
            for optimizer in self._optimizers()
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


def _cpu_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}

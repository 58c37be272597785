"""A student, its frozen teacher if it has one, the terms it learns from, and the discriminator that judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, NetworkPair, NetworkView, StepContext, nothing_of
from basicsr.optim.parts import TERMS
from basicsr.utils.dist_util import synchronising
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Precision, at_least_float32


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass of a model gives; all but `parts` has gradients."""

    total: torch.Tensor  # the weighted sum of all parts
    parts: dict[str, torch.Tensor]  # without their weights, detached, for the log
    weighted: dict[str, torch.Tensor]
    sr: torch.Tensor  # the network's output, float32 (B, C, sH, sW)


class KDModel(nn.Module):
    """Distils a teacher into a student; `model_type: SRModel` is the case of no teacher and no distillation.

    Its parameters are the student's, which maps I_LR (B, C, H, W) to I_S (B, C, sH, sW), and the heads of the terms it
    learns from. Losses are computed in float32. `teacher` is None where there is none, or its outputs come with the
    batches. Raises OptionsError where a term names a missing module, does not work with these networks, or needs a
    missing teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Mapping[str, LossTerm],
        precision: Precision,
        teacher_precision: Precision,
        scale: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_terms(terms, teacher is not None)
        self.network, self.terms = student, nn.ModuleDict(terms)
        self.precision, self._teacher_precision = precision, teacher_precision
        self._scale, self._seed = scale, seed
        # A term that trains the student's weights is attached and updated before those that follow them.
        self._owner_first = sorted(terms.values(), key=lambda term: not term.replaces_student)
        shown = teacher if teacher is not None else _MissingTeacher()
        pair = NetworkPair(NetworkView("network_g", student), NetworkView("network_t", shown))
        for term in self._owner_first:
            term.attach(pair)
        self._student_hooks = pair.student.feature_hooks(path for term in terms.values() for path in term.student_taps)
        needed = any(term.needs_teacher for term in terms.values())
        self._outputs_come = needed and teacher is None
        self.teacher: Teacher | None = None
        if teacher is not None and needed:
            hooks = pair.teacher.feature_hooks(path for term in terms.values() for path in term.teacher_taps)
            self.teacher = Teacher(teacher, teacher_precision, hooks)

    def forward(self, batch: Batch, iteration: int) -> StepOutput:
        """Runs student and teacher once and sums the terms' parts, each times its weight.

        Of a batch without HR images the terms that need them are left out.
        """
        with self._student_hooks as student_features:
            sr = self.run_network(batch.lq)
        sr_teacher: torch.Tensor | None = None
        teacher_features: Mapping[str, torch.Tensor] = {}
        if self.teacher is not None:
            with self.teacher.hooks as teacher_features:
                sr_teacher = self.teacher(batch.lq)
        elif self._outputs_come:
            sr_teacher = batch.sr_teacher
            if sr_teacher is None:
                raise OptionsError(
                    "datasets: train: this type of dataset gives no sr_teacher, and the teacher is not there; use"
                    " PairedImageDataset, or remove teacher_cache"
                )
        if sr_teacher is not None and sr_teacher.shape != sr.shape:
            given = "teacher_cache" if self.teacher is None else "network_t"
            raise OptionsError(
                f"{given} gives {tuple(sr_teacher.shape[1:])}, network_g {tuple(sr.shape[1:])}: their upscale and"
                " channels must agree"
            )
        context = StepContext(
            lq=batch.lq,
            gt=batch.gt,
            sr=sr,
            sr_teacher=sr_teacher,
            student_features=student_features,
            teacher_features=teacher_features,
            seeds=batch.seeds,
            seed=self._seed,
            iteration=iteration,
            scale=self._scale,
            student=self.run_network,
            teacher=self.teacher,
            autocast=self.precision.autocast,
            teacher_autocast=self._teacher_precision.autocast,
        )
        parts: dict[str, torch.Tensor] = {}
        weighted: dict[str, torch.Tensor] = {}
        total = nothing_of([sr])  # a loss of features alone leaves later layers out, for which ranks would wait
        for key, module in self.terms.items():
            term = cast(LossTerm, module)
            if batch.gt is None and term.gt_needs:
                total = total + nothing_of([sr, *term.parameters()])
                continue
            found = term(context)
            _check_parts(term, found)
            for name, part in found.items():
                unique = f"{name}_{key}" if name in parts else name
                parts[unique], weighted[unique] = part.detach(), term.weights[name] * part
                total = total + weighted[unique]
        return StepOutput(total, parts, weighted, sr)

    @property
    def _owner(self) -> LossTerm | None:
        """The term that trains the student's weights in its place, if one does."""
        first = self._owner_first[0] if self._owner_first else None
        return first if first is not None and first.replaces_student else None

    @property
    def trained_network(self) -> nn.Module:
        """The network whose weights the student runs with: itself, or what a term trains in its place."""
        return self._owner.trained_network() if self._owner is not None else self.network

    def parameters_by_name(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The trained network's parameters, by their names in it, and the heads', by `distill.TERM.NAME`."""
        student, heads = dict(self.network.named_parameters()), dict[str, nn.Parameter]()
        own = {id(weight): name for name, weight in self.trained_network.named_parameters()}
        for key, term in self.terms.items():
            for name, weight in term.named_parameters():
                of_network = own.get(id(weight)) if term is self._owner else None
                group = student if term is self._owner else heads  # a network trained in its place is no head
                group[of_network or f"{TERMS}{key}.{name}"] = weight
        return student, heads

    def run_network(self, lq: torch.Tensor) -> torch.Tensor:
        """I_S in float32, by the weights that a term trains in the student's place, if one does."""
        with self.precision.autocast():
            if self._owner is not None:
                return at_least_float32(torch.func.functional_call(self.network, self._owner.student_weights(), (lq,)))
            return at_least_float32(self.network(lq))

    @torch.no_grad()
    def after_update(self, iteration: int) -> None:
        """Tells the terms that iteration `iteration` is done and the network updated."""
        for term in self._owner_first:
            term.after_update(self.network, iteration)

    @torch.no_grad()
    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Shows the terms the moving average of the network's weights after iteration `iteration`."""
        for term in self._owner_first:
            term.after_average(average, iteration)


class Teacher:
    """Runs a trained network, frozen and in eval mode for good, at its own precision; `hooks` are on wanted features.

    It is not a module, so that the KD model that holds it neither trains, saves, synchronises nor moves it.
    """

    def __init__(self, network: nn.Module, precision: Precision, hooks: FeatureHooks) -> None:
        self.network = network.requires_grad_(False).eval()
        self.precision, self.hooks = precision, hooks

    @torch.no_grad()
    def __call__(self, lq: torch.Tensor) -> torch.Tensor:
        """I_T, float32 (B, C, sH, sW), for I_LR (B, C, H, W)."""
        with self.precision.autocast():
            return at_least_float32(self.network(lq))


class _MissingTeacher(nn.Module):
    """Placeholder used where there is no teacher, or only its cached outputs; running it is a bug."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the teacher's outputs come from a cache; a term that runs it must say so: teacher_needs")


def _check_terms(terms: Mapping[str, LossTerm], has_teacher: bool) -> None:
    """Raises OptionsError where one term rules another out, or needs more of a missing teacher than its outputs."""
    owners = [name for name, term in terms.items() if term.replaces_student]
    if len(owners) > 1:
        raise OptionsError(f"{' and '.join(owners)} would both train the student's weights in its place; keep one")
    running = [name for name, term in terms.items() if term.runs_student_parts]
    if owners and running:
        raise OptionsError(
            f"{owners[0]} trains the student's weights in its place, {running[0]} runs parts of the student by"
            " themselves; keep one of them"
        )
    for name, term in () if has_teacher else terms.items():
        if uses := term.teacher_needs or ("the teacher's features" if term.teacher_taps else ""):
            raise OptionsError(
                f"{name} ({type(term).__name__}) uses {uses}, and teacher_cache has outputs only; remove teacher_cache,"
                " or the term"
            )


def _check_parts(term: LossTerm, parts: dict[str, torch.Tensor]) -> None:
    """Raises OptionsError where the parts that a term returned break the contract of `LossTerm.forward`."""
    kind = type(term).__name__
    if not isinstance(parts, Mapping):
        raise OptionsError(f"{kind}: forward returned a {type(parts).__name__}; it must return parts by name")
    for name, part in parts.items():
        if not name.startswith("l_"):
            raise OptionsError(f"{kind}: forward returned a part '{name}'; parts are called l_..., such as 'l_{name}'")
        if not isinstance(part, torch.Tensor) or part.dim() != 0:
            given = f"has shape {tuple(part.shape)}" if isinstance(part, torch.Tensor) else f"is {part!r}"
            raise OptionsError(f"{kind}: '{name}' {given}; a part must be a tensor of no dimensions, such as a mean")
        if name not in term.weights:
            listed = ", ".join(term.weights) or "none"
            raise OptionsError(f"{kind}: forward returned '{name}', which its weights do not name; there are: {listed}")


class Adversary:
    """The discriminator and its half of the game: owns its optimizer and its loss scaler.

    It stands outside `KDModel`: registered inside a module under DistributedDataParallel it would let the student's
    weights drift apart between ranks. `gan_loss` is called as (logits, target_is_real, is_disc); `weight` is that of
    L_adv in the student's loss. Where the discriminator learns (`train`), its `optimizer` is to be set.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        gan_loss: nn.Module,
        weight: float,
        precision: Precision,
        *,
        train: bool = True,
        distributed: bool = False,
    ) -> None:
        self.discriminator = discriminator.train().requires_grad_(train)
        self.weight, self.scaler = weight, precision.scaler()
        self.optimizer: torch.optim.Optimizer | None = None
        self._gan_loss, self._trained = gan_loss, train
        self._judge: nn.Module = _Judge(discriminator, precision)
        if distributed and train:
            device_ids = [next(discriminator.parameters()).device] if precision.device_type == "cuda" else None
            self._judge = DistributedDataParallel(self._judge, device_ids=device_ids)

    def begin(self) -> None:
        """Drops the gradients of the iteration before."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    @torch.enable_grad()
    def play(
        self,
        real: torch.Tensor,
        sr: torch.Tensor,
        *,
        guided: Callable[[torch.Tensor], torch.Tensor] | None,
        share: float = 1.0,
        last: bool = True,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """One micro-batch: what the student learns from D, and D's gradients, which accumulate.

            L_D = -E[log D(I_GT)] - E[log(1 - D(I_S))] (eq. 5), L_adv = -E[log D(I_S)] (eq. 6),

        with the chosen GAN loss on logits. Both losses of I_S come from one pass through D; gradients stop at I_S.
        `guided` makes of the weighted L_adv what the student's gradients are to be computed from, such as the loss
        scaled for fp16; None where the student does not learn. `share` is the factor of D's gradients, 1 over the
        number of micro-batches; after the last one ranks average them.

        Returns `l_adv`, unweighted, where the student learns, and where the discriminator does, L_D's parts and D's
        mean logits, all detached; and the gradient of `guided` in I_S, float32, or None.
        """
        fake = sr.detach().requires_grad_(guided is not None)
        parts: dict[str, torch.Tensor] = {}
        gradient = None
        if guided is None and not self._trained:
            return parts, gradient
        with synchronising(self._judge, False):
            fake_logits = self._judge(fake)
        if guided is not None:
            guidance = self._gan_loss(fake_logits, True, is_disc=False)
            parts["l_adv"] = guidance.detach()
            loss = guided(self.weight * guidance)
            (gradient,) = torch.autograd.grad(loss, fake, retain_graph=self._trained)
        if self._trained:
            learned = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
            on_fake = self._gan_loss(fake_logits, False, is_disc=True)
            # Only for the discriminator's weights: the way back to the image ends before its first layer.
            self.scaler.scale(on_fake * share).backward(inputs=learned)
            with synchronising(self._judge, last):
                real_logits = self._judge(real)
                on_real = self._gan_loss(real_logits, True, is_disc=True)
                self.scaler.scale(on_real * share).backward()
            parts |= {"l_d_real": on_real.detach(), "l_d_fake": on_fake.detach()}
            parts |= {"out_d_real": real_logits.detach().mean(), "out_d_fake": fake_logits.detach().mean()}
        return parts, gradient

    def gradients(self) -> list[torch.Tensor]:
        """The discriminator's gradients, unscaled; none where it is not trained."""
        if self.optimizer is None:
            return []
        self.scaler.unscale_(self.optimizer)
        return [parameter.grad for parameter in self.discriminator.parameters() if parameter.grad is not None]

    def step(self) -> None:
        """Updates the discriminator with the gradients at hand."""
        if self._trained:
            assert self.optimizer is not None
            self.scaler.step(self.optimizer)
            self.scaler.update()


class _Judge(nn.Module):
    """D's logits in float32, whatever precision D is run in."""

    def __init__(self, discriminator: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.discriminator, self._precision = discriminator, precision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self._precision.autocast():
            return self.discriminator(images).float()

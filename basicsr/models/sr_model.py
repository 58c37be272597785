"""A network and its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, StepContext, nothing_of
from basicsr.losses.loss_util import at_least_float32
from basicsr.models.teacher import Teacher
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Precision


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass of a model gives.

    Attributes:
        total: the weighted sum of all parts, with gradients.
        parts: each part without its weight, detached, for the log.
        weighted: each part times its weight, with gradients.
        sr: the network's output, float32 (B, C, sH, sW), with gradients.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    weighted: dict[str, torch.Tensor]
    sr: torch.Tensor


class SRModel(nn.Module):
    """Trains any network without a teacher. Parameters: the network's, and the terms' heads.

    Args:
        network: maps I_LR (B, C, H, W) to (B, C, sH, sW).
        terms: what it learns from, by name.
        precision: how the network is run. Losses are computed in float32.
        scale: upscaling factor s.
        seed: the run's, from which terms derive random choices.

    Attributes:
        teacher: what a `KDModel` learns from; None where nothing asks for it.
    """

    teacher: Teacher | None = None

    def __init__(
        self, network: nn.Module, terms: Mapping[str, LossTerm], precision: Precision, scale: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.network = network
        self.terms = nn.ModuleDict(terms)
        self.precision = precision
        self.scale = scale
        self.seed = seed

    def forward(self, batch: Batch, iteration: int) -> StepOutput:
        """One step's losses."""
        context = self._context(batch, iteration)
        parts: dict[str, torch.Tensor] = {}
        weighted: dict[str, torch.Tensor] = {}
        total = nothing_of([context.sr])  # a loss of features alone leaves later layers out, for which ranks would wait
        for key, term in self._named_terms():
            for name, part in _checked(term, term(context)).items():
                unique = f"{name}_{key}" if name in parts else name
                parts[unique], weighted[unique] = part.detach(), term.weights[name] * part
                total = total + weighted[unique]
        return StepOutput(total, parts, weighted, context.sr)

    def _context(self, batch: Batch, iteration: int) -> StepContext:
        assert batch.gt is not None, "training needs HR images"
        return StepContext(
            lq=batch.lq,
            gt=batch.gt,
            sr=self.run_network(batch.lq),
            sr_teacher=None,
            student_features={},
            teacher_features={},
            seeds=batch.seeds,
            seed=self.seed,
            iteration=iteration,
            scale=self.scale,
            student=self.run_network,
            teacher=None,
            autocast=self.precision.autocast,
            teacher_autocast=self.precision.autocast,
        )

    def run_network(self, lq: torch.Tensor) -> torch.Tensor:
        """The network's output in float32, by the weights that a term trains in its place, if one does."""
        owner = next((term for _, term in self._named_terms() if term.replaces_student), None)
        with self.precision.autocast():
            if owner is not None:
                return at_least_float32(torch.func.functional_call(self.network, owner.student_weights(), (lq,)))
            return at_least_float32(self.network(lq))

    @torch.no_grad()
    def after_update(self, iteration: int) -> None:
        """Tells the terms that iteration `iteration` is done and the network updated."""
        for term in self._owner_first():
            term.after_update(self.network, iteration)

    @torch.no_grad()
    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Shows the terms the moving average of the network's weights after iteration `iteration`."""
        for _, term in self._named_terms():
            term.after_average(average, iteration)

    def _owner_first(self) -> list[LossTerm]:
        return sorted((term for _, term in self._named_terms()), key=lambda term: not term.replaces_student)

    def _named_terms(self) -> Iterator[tuple[str, LossTerm]]:
        for key, term in self.terms.items():
            assert isinstance(term, LossTerm)
            yield key, term


def _checked(term: LossTerm, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a term returned, held against what the contract says of it.

    Raises:
        OptionsError: it is no mapping of scalars, or a part is not named as the contract says, or has no weight.
    """
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
    return parts

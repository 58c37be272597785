"""A student, its frozen teacher, and the terms it learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, StepContext
from basicsr.distill.networks import NetworkPair, NetworkView
from basicsr.models.sr_model import SRModel
from basicsr.models.teacher import NotThere, Teacher
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Precision


class KDModel(SRModel):
    """Distils a teacher into a student.

    Args:
        student: the network to train.
        teacher: the network to learn from, loaded and on its device; None where its outputs come with the batches.
        terms: what the student learns from, by name.
        precision: how the student is run.
        teacher_precision: how the teacher is run.
        scale: upscaling factor s.
        seed: the run's, from which terms derive random choices.

    Raises:
        OptionsError: a term taps a module that is not there, or does not work with these networks, or needs the
            teacher itself, which is None.
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
        super().__init__(student, terms, precision, scale, seed)
        shown = teacher if teacher is not None else NotThere()
        pair = NetworkPair(NetworkView("network_g", student), NetworkView("network_t", shown))
        _check_together(terms)
        if teacher is None:
            _check_outputs_suffice(terms)
        for term in self._owner_first():
            term.attach(pair)
        self._teacher_precision = teacher_precision
        needed = any(term.needs_teacher for term in terms.values())
        self._outputs_come = needed and teacher is None
        self._taps = pair.student.taps(path for term in terms.values() for path in term.student_taps)
        if teacher is not None and needed:
            teacher_taps = pair.teacher.taps(path for term in terms.values() for path in term.teacher_taps)
            self.teacher = Teacher(teacher, teacher_precision, teacher_taps)

    def _context(self, batch: Batch, iteration: int) -> StepContext:
        with self._taps as student_features:
            context = super()._context(batch, iteration)
        context = dataclasses.replace(
            context, student_features=student_features, teacher_autocast=self._teacher_precision.autocast
        )
        if self._outputs_come:
            return dataclasses.replace(context, sr_teacher=_stored_output(batch, context.sr))
        if self.teacher is None:
            return context
        sr_teacher, teacher_features = self.teacher.with_features(batch.lq)
        if sr_teacher.shape != context.sr.shape:
            raise OptionsError(
                f"network_t gives {tuple(sr_teacher.shape[1:])}, network_g {tuple(context.sr.shape[1:])}: their"
                " upscale and channels must agree"
            )
        return dataclasses.replace(
            context,
            sr_teacher=sr_teacher,
            teacher_features=teacher_features,
            teacher=self.teacher,
        )


def _stored_output(batch: Batch, sr: torch.Tensor) -> torch.Tensor:
    if batch.sr_teacher is None:
        raise OptionsError(
            "datasets: train: this type of dataset gives no sr_teacher, and the teacher is not there; use"
            " PairedImageDataset, or remove teacher_cache"
        )
    if batch.sr_teacher.shape != sr.shape:
        raise OptionsError(
            f"teacher_cache gives {tuple(batch.sr_teacher.shape[1:])}, network_g {tuple(sr.shape[1:])}: their upscale"
            " and channels must agree"
        )
    return batch.sr_teacher


def _check_outputs_suffice(terms: Mapping[str, LossTerm]) -> None:
    """Raises OptionsError where a term needs more of the teacher than its outputs."""
    for name, term in terms.items():
        if term.teacher_needs or term.teacher_taps:
            uses = term.teacher_needs or "the teacher's features"
            raise OptionsError(
                f"{name} ({type(term).__name__}) uses {uses}, and teacher_cache has outputs only; remove teacher_cache,"
                " or the term"
            )


def _check_together(terms: Mapping[str, LossTerm]) -> None:
    """Raises OptionsError where one term rules another out."""
    owners = [name for name, term in terms.items() if term.replaces_student]
    if len(owners) > 1:
        raise OptionsError(f"{' and '.join(owners)} would both train the student's weights in its place; keep one")
    running = [name for name, term in terms.items() if term.runs_student_parts]
    if owners and running:
        raise OptionsError(
            f"{owners[0]} trains the student's weights in its place, {running[0]} runs parts of the student by"
            " themselves; keep one of them"
        )

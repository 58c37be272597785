"""The discriminator and its half of the adversarial game."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.utils.precision import Precision


class DiscriminatorLoss(nn.Module):
    """L_D = -E[log D(I_GT)] - E[log(1 - D(I_S))] (eq. 5), with the chosen GAN loss on logits.

    One module, so that under DistributedDataParallel both passes belong to one forward call.
    """

    def __init__(self, discriminator: nn.Module, gan_loss: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.discriminator, self.gan_loss, self._precision = discriminator, gan_loss, precision

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """D's output in float32, for images (B, C, H, W)."""
        with self._precision.autocast():
            return self.discriminator(image).float()

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """The two halves of L_D and D's mean logits, for images (B, C, H, W); `fake` must be detached."""
        real_logits, fake_logits = self.logits(real), self.logits(fake)
        return {
            "l_d_real": self.gan_loss(real_logits, True, is_disc=True),
            "l_d_fake": self.gan_loss(fake_logits, False, is_disc=True),
            "out_d_real": real_logits.mean(),
            "out_d_fake": fake_logits.mean(),
        }


class Adversary:
    """Owns the discriminator, its optimizer and its loss scaler.

    It stands outside the student's model: registered inside a module under DistributedDataParallel it would let the
    student's weights drift apart between ranks.

    Args:
        discriminator: on its device.
        gan_loss: called as (logits, target_is_real, is_disc).
        weight: of L_adv in the student's loss.
        precision: how the discriminator is run.
        train: whether the discriminator learns.
        distributed: whether to average its gradients over ranks.
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
        self.weight = weight
        self.optimizer: torch.optim.Optimizer | None = None
        self.scaler = precision.scaler()
        self._trained = train
        self._loss = DiscriminatorLoss(discriminator, gan_loss, precision)
        self._step_loss: nn.Module = self._loss
        if distributed and train:
            device_ids = [next(discriminator.parameters()).device] if precision.device_type == "cuda" else None
            self._step_loss = DistributedDataParallel(self._loss, device_ids=device_ids)

    def guidance(self, sr: torch.Tensor) -> torch.Tensor:
        """L_adv = -E[log D(I_S)] (eq. 6), unweighted, with gradients for I_S and none for the discriminator."""
        self.discriminator.requires_grad_(False)
        loss: torch.Tensor = self._loss.gan_loss(self._loss.logits(sr), True, is_disc=False)
        self.discriminator.requires_grad_(self._trained)
        return loss

    def backward(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Accumulates the discriminator's gradients.

        Args:
            pairs: (I_GT, I_S) of each micro-batch, I_S detached.

        Returns:
            L_D's parts and mean logits, averaged over `pairs`, detached. Empty where the discriminator is not trained.
        """
        if not self._trained:
            return {}
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for index, (real, fake) in enumerate(pairs):
            with self._synchronising(index == len(pairs) - 1):
                parts = self._step_loss(real, fake)
                loss = (parts["l_d_real"] + parts["l_d_fake"]) / len(pairs)
                self.scaler.scale(loss).backward()
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + part.detach() / len(pairs)
        return totals

    def gradients(self) -> list[torch.Tensor]:
        """The discriminator's gradients at hand, unscaled; none where it is not trained."""
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

    def _synchronising(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self._step_loss, DistributedDataParallel):
            return nullcontext()
        return self._step_loss.no_sync()

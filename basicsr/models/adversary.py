"""The discriminator and its half of the adversarial game."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.utils.precision import Precision


class Adversary:
    """Owns the discriminator, its optimizer and its loss scaler.

    It stands outside the student's model: registered inside a module under DistributedDataParallel it would let the
    student's weights drift apart between ranks.

    Args:
        discriminator: on its device.
        gan_loss: called as (logits, target_is_real, is_disc).
        weight: of L_adv in the student's loss.
        precision: how the discriminator is run.
        train: whether the discriminator learns; then its `optimizer` is to be set.
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
        self.weight, self.scaler = weight, precision.scaler()
        self.optimizer: torch.optim.Optimizer | None = None
        self._gan_loss, self._trained = gan_loss, train
        self._judge: nn.Module = _Judge(discriminator, precision)
        if distributed and train:
            device_ids = [next(discriminator.parameters()).device] if precision.device_type == "cuda" else None
            self._judge = DistributedDataParallel(self._judge, device_ids=device_ids)

    def begin(self) -> None:
        """Forgets the gradients of the iteration before."""
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

        with the chosen GAN loss on logits. Both losses of I_S come from one pass through D.

        Args:
            real: I_GT, (B, C, H, W).
            sr: I_S of the same shape; gradients stop at it.
            guided: makes of the weighted L_adv what the student's gradients are to be computed from, such as the loss
                scaled for fp16; None where the student does not learn.
            share: factor of D's gradients, 1 over the number of micro-batches.
            last: whether this is the last micro-batch, after which ranks average D's gradients.

        Returns:
            `l_adv`, unweighted, where the student learns, and where the discriminator does, L_D's parts and D's mean
            logits, all detached. And the gradient of `guided` in I_S, float32, or None.
        """
        fake = sr.detach().requires_grad_(guided is not None)
        parts: dict[str, torch.Tensor] = {}
        gradient = None
        if guided is None and not self._trained:
            return parts, gradient
        with self._synchronising(False):
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
            with self._synchronising(last):
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

    def _synchronising(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self._judge, DistributedDataParallel):
            return nullcontext()
        return self._judge.no_sync()


class _Judge(nn.Module):
    """D's logits in float32, whatever precision D is run in."""

    def __init__(self, discriminator: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.discriminator, self._precision = discriminator, precision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self._precision.autocast():
            return self.discriminator(images).float()

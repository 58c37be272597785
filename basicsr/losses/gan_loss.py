"""Adversarial losses on a discriminator's output, and penalties on its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Label, Weight
from basicsr.utils.registry import LOSS_REGISTRY, Conflict, check_arguments

GANType = Literal["vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"]


@LOSS_REGISTRY.register()
class GANLoss(nn.Module):
    """How far a discriminator's output is from the verdict asked for, times `loss_weight` where the generator learns.

    With x the output, y the verdict's label and s = 1 for real, -1 for fake, the mean over elements of

      vanilla        -y log sigmoid(x) - (1 - y) log(1 - sigmoid(x))   (Goodfellow et al. 2014)
      lsgan          (x - y)^2                                          (Mao et al. 2017)
      wgan           -s x                                               (Arjovsky et al. 2017)
      wgan_softplus  log(1 + exp(-s x))                                 (Karras et al. 2020, StyleGAN2)
      hinge          max(0, 1 - s x) for the discriminator, -x for the generator, whatever s (Lim and Ye 2017)

    Args:
        gan_type: which of the above.
        real_label_val: label y of the real images (vanilla, lsgan).
        fake_label_val: label y of the generated images (vanilla, lsgan).
        loss_weight: factor of the generator's loss; the discriminator's is always 1.
    """

    def __init__(
        self,
        *,
        gan_type: GANType,
        real_label_val: Label = 1.0,
        fake_label_val: Label = 0.0,
        loss_weight: Weight = 1.0,
    ) -> None:
        check_arguments(GANLoss, locals())
        super().__init__()
        self.loss_weight = loss_weight
        self.gan_type: GANType = gan_type
        self.real_label_val, self.fake_label_val = real_label_val, fake_label_val

    @staticmethod
    def conflicts(gan_type: str, real_label_val: float, fake_label_val: float) -> Iterator[Conflict]:
        """See `basicsr.utils.registry.find_problems`."""
        if gan_type in ("vanilla", "lsgan") and real_label_val == fake_label_val:
            yield "real_label_val", f"is {real_label_val}, as is fake_label_val: nothing to tell apart; change either"

    def forward(self, input: torch.Tensor, target_is_real: bool, is_disc: bool = False) -> torch.Tensor:
        """A scalar, for logits x of any shape; `is_disc`: the discriminator learns from it, not the generator."""
        loss = self._loss(at_least_float32(input), target_is_real, is_disc)
        return loss if is_disc else self.loss_weight * loss

    def _loss(self, logits: torch.Tensor, real: bool, is_disc: bool) -> torch.Tensor:
        if self.gan_type in ("vanilla", "lsgan"):
            label = torch.full_like(logits, self.real_label_val if real else self.fake_label_val)
            distance = F.binary_cross_entropy_with_logits if self.gan_type == "vanilla" else F.mse_loss
            return distance(logits, label)
        agreement = logits if real else -logits
        if self.gan_type == "wgan":
            return -agreement.mean()
        if self.gan_type == "wgan_softplus":
            return F.softplus(-agreement).mean()
        return F.relu(1 - agreement).mean() if is_disc else -logits.mean()


def r1_penalty(real_pred: torch.Tensor, real_img: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of ||d D(x) / d x||^2 at real images x, (B, C, H, W) with gradients on; `real_pred` is D(x).

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9, without gamma / 2.
    """
    (gradient,) = torch.autograd.grad(real_pred.sum(), real_img, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def gradient_penalty_loss(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real_data: torch.Tensor,
    fake_data: torch.Tensor,
    weight: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """WGAN-GP: mean of (||d D(x) / d x|| - 1)^2 at random points between real and generated images (B, C, H, W).

    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017. As in BasicSR, the norm is taken over the
    channels of each pixel, where the paper takes it over the whole image. `weight` (B, C or 1, H, W) are factors of the
    gradient; the result is divided by their mean. `generator`, on the CPU, draws one point per image.
    """
    share = torch.rand(len(real_data), 1, 1, 1, generator=generator).to(real_data)
    between = (share * real_data + (1 - share) * fake_data).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    if weight is not None:
        gradient = gradient * weight
    penalty = (gradient.norm(2, dim=1) - 1).square().mean()
    return penalty if weight is None else penalty / weight.mean()

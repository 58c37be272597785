"""Losses on the features of a VGG network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.frozen import Frozen, check_images_for
from basicsr.archs.vgg_arch import VGGFeatureExtractor, layer_problems
from basicsr.losses.basic_loss import BatchScope
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Weight
from basicsr.utils.registry import LOSS_REGISTRY, Conflict, Problem, check_arguments

Criterion = Literal["l1", "l2", "fro"]


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """G = F F^T / (C H W) for features F, (B, C, H, W) seen as (B, C, H W); returns (B, C, C)."""
    _, channels, height, width = features.shape
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (channels * height * width)


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "fro": lambda first, second: torch.linalg.vector_norm(first - second),
}


@LOSS_REGISTRY.register()
class PerceptualLoss(nn.Module):
    """Distances between the VGG features of two images, and between the features' Gram matrices.

      perceptual = perceptual_weight * sum_k w_k d(f_k(x), f_k(gt))
      style = style_weight * sum_k w_k d(G(f_k(x)), G(f_k(gt)))

    with f_k the features of layer k, G their Gram matrix, and d the mean absolute difference ('l1'), the mean
    squared one ('l2') or the Frobenius norm of the difference over the whole batch ('fro'). Johnson et al.,
    "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016. The VGG is `Frozen`.

    Args:
        layer_weights: w_k by layer, such as {'conv5_4': 1.0} for the features before relu5_4.
        vgg_type: 'vgg11', 'vgg13', 'vgg16', 'vgg19', or one of these with '_bn'.
        use_input_norm: normalise with ImageNet's mean and deviation; images must be RGB in [0, 1].
        range_norm: bring images from [-1, 1] to [0, 1] first.
        perceptual_weight: factor of the perceptual part; 0 leaves it out.
        style_weight: factor of the style part; 0 leaves it out.
        criterion: 'l1', 'l2' or 'fro'.
        vgg_weights: see `VGGFeatureExtractor`.
    """

    @staticmethod
    def batch_scope(options: Mapping[str, Any]) -> BatchScope:
        """A Frobenius norm is taken over the whole batch."""
        return "one rank" if options.get("criterion") == "fro" else "image"

    def __init__(
        self,
        *,
        layer_weights: Mapping[str, Weight],
        vgg_type: str = "vgg19",
        use_input_norm: bool = True,
        range_norm: bool = False,
        perceptual_weight: Weight = 1.0,
        style_weight: Weight = 0.0,
        criterion: Criterion = "l1",
        vgg_weights: str | None = None,
    ) -> None:
        check_arguments(PerceptualLoss, locals())
        super().__init__()
        self.layer_weights = dict(layer_weights)
        self.perceptual_weight = perceptual_weight
        self.style_weight = style_weight
        self._distance = _DISTANCES[criterion]
        self._frozen = Frozen(
            VGGFeatureExtractor(
                layer_name_list=list(layer_weights),
                vgg_type=vgg_type,
                use_input_norm=use_input_norm,
                range_norm=range_norm,
                vgg_weights=vgg_weights,
            )
        )

    @staticmethod
    def conflicts(layer_weights: Mapping[str, float], vgg_type: str) -> Iterator[Conflict | Problem]:
        """See `basicsr.utils.registry.find_problems`."""
        yield from layer_problems(layer_weights, vgg_type)
        if not any(layer_weights.values()):
            yield "layer_weights", "names no layer with a weight above 0, such as {conv5_4: 1.0}"

    @property
    def vgg(self) -> VGGFeatureExtractor:
        """The frozen feature extractor."""
        return self._frozen.network

    def check_output(self, shape: Sequence[int]) -> None:
        """Raises OptionsError where images (C, H, W) are neither gray nor RGB, or too small for the deepest layer."""
        halvings = sum(isinstance(layer, nn.MaxPool2d) for layer in self.vgg.vgg_net)
        check_images_for("PerceptualLoss", "VGG", shape, 2**halvings)

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The perceptual and the style part, None for one whose weight is 0; no gradients flow to `gt`.

        `x` and `gt` are (B, 3, H, W) RGB, or (B, 1, H, W) gray, in [0, 1] ([-1, 1] with `range_norm`).
        """
        if not (self.perceptual_weight > 0 or self.style_weight > 0):
            return None, None
        features = {name: at_least_float32(value) for name, value in self.vgg(x).items()}
        with torch.no_grad():
            targets = {name: at_least_float32(value) for name, value in self.vgg(gt).items()}
        perceptual = style = None
        # Gram matrices are large sums: autocast would compute them in a short format.
        with torch.autocast(x.device.type, enabled=False):
            if self.perceptual_weight > 0:
                perceptual = self.perceptual_weight * self._total(features, targets)
            if self.style_weight > 0:
                grams = {name: gram_matrix(value) for name, value in features.items()}
                target_grams = {name: gram_matrix(value) for name, value in targets.items()}
                style = self.style_weight * self._total(grams, target_grams)
        return perceptual, style

    def _total(self, features: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        distances = [self.layer_weights[name] * self._distance(features[name], targets[name]) for name in features]
        return torch.stack(distances).sum()

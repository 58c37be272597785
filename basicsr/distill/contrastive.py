"""Multi-scale contrastive distillation of MCAD-KD (Ko et al., ICCV Workshops 2025), eqs. 2 to 4."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import nn

from basicsr.archs.arch_util import in_colour
from basicsr.archs.projection_arch import ImageProjectionHead, PatchProjectionHead
from basicsr.distill.base import LossTerm, StepContext
from basicsr.losses.basic_loss import BatchScope
from basicsr.utils.dist_util import gather_with_gradient
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Features, Few, Many, Side, Weight
from basicsr.utils.registry import METHOD_REGISTRY, Conflict, Misfit, check_arguments

TAU_RANGE = (0.01, 1.0)
Tau = Annotated[float, Ge(TAU_RANGE[0]), Le(TAU_RANGE[1])]


def info_nce(
    similarity: torch.Tensor,
    positive: torch.Tensor,
    tau: torch.Tensor | float,
    *,
    denominator: Literal["all", "negatives"] = "all",
    mining: Literal["hard", "all"] = "all",
    num_negatives: int | None = None,
) -> torch.Tensor:
    """InfoNCE per query: -log(exp(s_p / tau) / sum_k exp(s_k / tau)), (..., Q), zero without negatives.

    `similarity` are cosines (..., Q, K) of queries and keys, `positive` (Q,) the index of each query's positive. The
    denominator 'negatives' leaves the positive out, which makes the loss unbounded below. 'hard' mining keeps the
    `num_negatives` most similar negatives (None: half, at least one), chosen anew at each step.
    """
    keys = similarity.shape[-1]
    if keys == 1:
        return (similarity / tau).sum(-1) * 0.0  # zero, yet with every parameter in the graph
    logits = similarity / tau
    is_positive = positive[:, None] == torch.arange(keys, device=positive.device)
    positives = logits.gather(-1, positive[:, None].expand(*logits.shape[:-1], 1))
    negatives = logits.masked_fill(is_positive, -torch.inf)
    if mining == "hard":
        wanted = num_negatives if num_negatives is not None else max(1, (keys - 1) // 2)
        negatives = negatives.topk(min(wanted, keys - 1), dim=-1, sorted=False).values
    others = torch.cat([positives, negatives], dim=-1) if denominator == "all" else negatives
    return torch.logsumexp(others, dim=-1) - positives.squeeze(-1)


def crop_positions(
    generators: list[np.random.Generator], num_patches: int, height: int, width: int, size: int
) -> np.ndarray:
    """Draws the top left corners of `num_patches` crops in each image: int64 (B, N, 2), uniform, row before column."""
    limit = (height - size + 1, width - size + 1)
    return np.stack([generator.integers(0, limit, size=(num_patches, 2)) for generator in generators])


def crop_patches(images: torch.Tensor, positions: np.ndarray, size: int) -> torch.Tensor:
    """Cuts crops (B * N, C, size, size) out of images (B, C, H, W); overlapping gradients add in a fixed order."""
    return _CropPatches.apply(images, positions, size)


class _CropPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, positions: np.ndarray, size: int) -> torch.Tensor:
        ctx.positions, ctx.shape = positions, images.shape
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        windows = [
            image[:, top : top + size, left : left + size]
            for image, corners in zip(images, positions, strict=True)
            for top, left in corners
        ]
        return torch.stack(windows).contiguous(memory_format=layout or torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.new_zeros(ctx.shape)
        patches = iter(gradient)
        for image, corners in zip(total, ctx.positions, strict=True):
            for top, left in corners:
                patch = next(patches)
                image[:, top : top + patch.shape[-2], left : left + patch.shape[-1]] += patch
        return total, None, None


@METHOD_REGISTRY.register()
class HybridContrastive(LossTerm):
    """L_cont = lambda_img L_img + lambda_patch L_patch (eq. 7d), in embedding spaces learned with the student.

    L_img (eq. 2) is InfoNCE over the batch: the student's embedding of an image is the query, the teacher's of the
    same image the positive, the teacher's of the other images the negatives. L_patch (eq. 4) is InfoNCE over the N
    random crops of an image, at the same positions in I_S and I_T. The equations to the letter are
    `mining: all, reduction: sum`, as in options/methods/mcadkd_equations.yml.

    Args:
        mode: 'image', 'patch' or 'hybrid': which of the two terms are present. Their weights stay the same.
        patch_size: side of a crop, HR pixels.
        num_patches: N, crops per image.
        image_weight: lambda_img.
        patch_weight: lambda_patch.
        loss_weight: lambda_cont, multiplied with both.
        tau: initial temperature. Its logarithm is learned; it is kept within 0.01 and 1.
        mining: 'hard' keeps only the most similar negatives of each query, 'all' every one, as eqs. 2 and 4. The
            default is ours: the authors' README names 'hard', and their code ignores it.
        num_negatives: how many with 'hard'; half of them, at least one, where left out.
        denominator: 'all' (the equations') or 'negatives', see `info_nce`.
        patch_negatives: a patch's negatives are the other patches of its 'image' (eq. 4) or of the whole 'batch'.
        reduction: 'mean' over the patches of an image (ours and the public code's) or their 'sum' (eq. 4). Images are
            averaged either way.
        crops: positions drawn once per image ('paired'), or apart for student and teacher ('independent').
        gather_negatives: take negatives from the batches of all ranks, with exact gradients.
        train_heads: whether the heads and the temperature learn.
        embed_dim: d, the embedding's dimension.
    """

    teacher_needs = ""
    gt_needs = ""
    without_effect = (({"mining": "all"}, ("num_negatives",)),)

    @staticmethod
    def batch_scope(options: Mapping[str, Any]) -> BatchScope:
        """Negatives come from the batches of all ranks, or of one."""
        return "all ranks" if options.get("gather_negatives", True) else "one rank"

    def __init__(
        self,
        *,
        mode: Literal["image", "patch", "hybrid"] = "hybrid",
        patch_size: Side = 48,
        num_patches: Few = 8,
        image_weight: Weight = 0.3,
        patch_weight: Weight = 0.7,
        loss_weight: Weight = 0.05,
        tau: Tau = 0.07,
        mining: Literal["hard", "all"] = "hard",
        num_negatives: Many | None = None,
        denominator: Literal["all", "negatives"] = "all",
        patch_negatives: Literal["image", "batch"] = "image",
        reduction: Literal["mean", "sum"] = "mean",
        crops: Literal["paired", "independent"] = "paired",
        gather_negatives: bool = True,
        train_heads: bool = True,
        embed_dim: Features = 256,
    ) -> None:
        check_arguments(HybridContrastive, locals())
        super().__init__()
        self.patch_size, self.num_patches = patch_size, num_patches
        self._info_nce = partial(info_nce, denominator=denominator, mining=mining, num_negatives=num_negatives)
        self.patch_negatives, self.reduction, self.crops = patch_negatives, reduction, crops
        self.gather_negatives = gather_negatives
        self.weights = {}
        if mode != "patch":
            self.weights["l_img"] = loss_weight * image_weight
            self.image_head = ImageProjectionHead(embed_dim=embed_dim)
        if mode != "image":
            self.weights["l_patch"] = loss_weight * patch_weight
            self.patch_head = PatchProjectionHead(embed_dim=embed_dim)
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))
        self.requires_grad_(train_heads)

    @staticmethod
    def conflicts(mode: str, embed_dim: int) -> Iterator[Conflict]:
        multiple = 2 if mode == "image" else 4
        if embed_dim % multiple:
            yield "embed_dim", f"is {embed_dim}, allowed: multiples of {multiple}, as the heads' layers halve it"

    @staticmethod
    def misfits(
        mode: str, patch_size: int, gather_negatives: bool, gt_size: int, batch_size: int, ranks: int
    ) -> Iterator[Misfit]:
        if mode != "image" and patch_size > gt_size:
            yield Misfit("patch_size", f"{patch_size} is larger than the smallest gt_size {gt_size}; lower it", True)
        if mode != "patch" and batch_size == 1 and not (ranks > 1 and gather_negatives):
            yield Misfit(
                "mode",
                f"is {mode}, but batch_size_per_gpu is 1: the contrast of whole images has no other image, and l_img is"
                " 0; raise it, or take patch",
            )

    @property
    def tau(self) -> torch.Tensor:
        """The temperature, a scalar."""
        return self.log_tau.exp()

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_img` and `l_patch`, those that the mode has; raises OptionsError if crops exceed the images."""
        with torch.no_grad():
            self.log_tau.clamp_(*map(math.log, TAU_RANGE))
        parts = {}
        if "l_img" in self.weights:
            images = (in_colour(context.sr), in_colour(context.teacher_output))
            with context.autocast():
                queries, keys = map(self.image_head, images)
            parts["l_img"] = self._contrast_over_batch(queries, keys).mean()
        if "l_patch" in self.weights:
            parts["l_patch"] = self._patch_loss(context)
        return parts

    def _patches(self, context: StepContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops of I_S and of I_T, (B * N, 3, size, size)."""
        height, width = context.sr.shape[-2:]
        if self.patch_size > min(height, width):
            raise OptionsError(
                f"contrastive_opt: patch_size {self.patch_size} is larger than the {height}x{width} output;"
                " lower it or raise gt_size"
            )
        crop = (self.num_patches, height, width, self.patch_size)
        positions = of_teacher = crop_positions(context.generators("contrastive crops"), *crop)
        if self.crops == "independent":
            of_teacher = crop_positions(context.generators("contrastive crops of the teacher"), *crop)
        student = in_colour(crop_patches(context.sr, positions, self.patch_size))
        return student, in_colour(crop_patches(context.teacher_output, of_teacher, self.patch_size))

    def _patch_loss(self, context: StepContext) -> torch.Tensor:
        student, teacher = self._patches(context)
        with context.autocast():
            queries, keys = self.patch_head(student), self.patch_head(teacher)
        if self.patch_negatives == "batch":
            losses = self._contrast_over_batch(queries, keys)
        else:
            per_image = (-1, self.num_patches, queries.shape[-1])
            similarity = queries.view(per_image) @ keys.view(per_image).transpose(1, 2)
            losses = self._info_nce(similarity, torch.arange(self.num_patches, device=queries.device), self.tau)
        losses = losses.view(-1, self.num_patches)
        return losses.sum(1).mean() if self.reduction == "sum" else losses.mean()

    def _contrast_over_batch(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Losses (Q,) of `queries` against the keys, both (Q, d), of this rank or of all."""
        first = 0
        if self.gather_negatives:
            keys, first = gather_with_gradient(keys)
        positive = torch.arange(first, first + len(queries), device=queries.device)
        return self._info_nce(queries @ keys.T, positive, self.tau)

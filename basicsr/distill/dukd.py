"""DUKD (Zhang et al., 2023), and label consistency on the teacher's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from basicsr.distill.base import LossTerm, StepContext
from basicsr.utils.errors import OptionsError
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.ranges import Few, Probability, Weight
from basicsr.utils.registry import METHOD_REGISTRY, Conflict, Misfit, check_arguments

PIXEL_WEIGHT = 5.0  # published, of both losses against true images

# Colour inversion of images in [0, 1], horizontal flip, vertical flip, transposition; each is its own inverse.
OPERATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda images: 1 - images,
    lambda images: images.flip(-1),
    lambda images: images.flip(-2),
    lambda images: images.transpose(-1, -2),
)


@METHOD_REGISTRY.register()
class DUKD(LossTerm):
    """Student S and teacher T see more images of the kind they know, made from the training pair, at scale s >= 2.

    Zhang et al., "Data Upcycling Knowledge Distillation for Image Super-Resolution", 2023.

        zoom-in:  tiles X of I_GT, each of the size of I_LR, with no known enlargement:
                  l_zoom_in = L1(A^-1(S(A(X))), T(X))
        zoom-out: Y, I_LR reduced s times by MATLAB's bicubic imresize, not clipped, whose enlargement is I_LR:
                  l_zoom_out = L1(S(Y), T(Y)),  l_zoom_out_pix = L1(S(Y), I_LR)

    A is the label consistency: colour inversion (1 - x), horizontal flip, vertical flip and transposition, applied in
    this order, each with its own probability, and undone on the output in reverse. Patches that are not square are not
    transposed. Every draw derives from the sample's seed. Where sides of I_LR are no multiples of s, zoom-out takes its
    upper left part that is. The published loss has these three beside 5 L1(I_S, I_GT) + L1(I_S, I_T).

    Args:
        zoom_in: whether to learn from tiles of I_GT.
        zoom_out: whether to learn from reduced LR images.
        num_patches: tiles for each image, of the s x s that I_GT consists of, none twice.
        consistency_probability: probability of each operation, for each tile on its own; 0 turns label consistency off.
        zoom_out_consistency: whether zoom-out is under label consistency, too; as published, it is not.
        kd_weight: weight of the losses against the teacher.
        pixel_weight: weight of the loss against I_LR, equal to that of L1(I_S, I_GT); 5, as published, by default.
        loss_weight: factor on all of them.
    """

    batch_scope = "image"
    teacher_needs = "the teacher on other images"
    without_effect = (
        ({"zoom_out": False}, ("zoom_out_consistency", "pixel_weight")),
        ({"zoom_in": False}, ("num_patches",)),
        ({"zoom_in": False, "zoom_out_consistency": False}, ("consistency_probability",)),
    )

    @staticmethod
    def gt_needs(options: Mapping[str, Any]) -> str:
        """Tiles of I_GT are zoomed in on."""
        return "tiles of HR images, unless zoom_in is false" if options.get("zoom_in", True) else ""

    def __init__(
        self,
        *,
        zoom_in: bool = True,
        zoom_out: bool = True,
        num_patches: Few = 1,
        consistency_probability: Probability = 0.3,
        zoom_out_consistency: bool = False,
        kd_weight: Weight = 1.0,
        pixel_weight: Weight | None = None,
        loss_weight: Weight = 1.0,
    ) -> None:
        check_arguments(DUKD, locals())
        super().__init__()
        self.zoom_in, self.zoom_out, self.num_patches = zoom_in, zoom_out, num_patches
        self.consistency_probability = consistency_probability
        self.zoom_out_consistency = zoom_out_consistency
        self.weights = {}
        if zoom_in:
            self.weights["l_zoom_in"] = loss_weight * kd_weight
        if zoom_out:
            self.weights["l_zoom_out"] = loss_weight * kd_weight
            self.weights["l_zoom_out_pix"] = loss_weight * (PIXEL_WEIGHT if pixel_weight is None else pixel_weight)

    @staticmethod
    def conflicts(zoom_in: bool, zoom_out: bool) -> Iterator[Conflict]:
        if not (zoom_in or zoom_out):
            yield "zoom_in", "is false, as is zoom_out; turn one on, or leave the method out"

    @staticmethod
    def misfits(zoom_in: bool, num_patches: int, scale: int) -> Iterator[Misfit]:
        if scale < 2:
            yield Misfit("type", f"DUKD needs a scale of 2 or more to zoom, got {scale}; leave the method out", True)
        elif zoom_in and num_patches > scale**2:
            message = f"is {num_patches}, but at scale {scale} an HR image has {scale**2} tiles; lower it"
            yield Misfit("num_patches", message, True)

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_zoom_in`, `l_zoom_out` and `l_zoom_out_pix`, those that are on; OptionsError for unfit images."""
        for misfit in DUKD.misfits(self.zoom_in, self.num_patches, context.scale):
            raise OptionsError(f"DUKD: {misfit.key}: {misfit.message}")
        assert context.teacher is not None
        probability = self.consistency_probability
        parts = {}
        if self.zoom_in:
            tiles = self._tiles(context)
            which = drawn_operations(context, "DUKD zoom-in", self.num_patches, probability, tiles)
            student = undone(context.student(applied(tiles, which)), which)
            parts["l_zoom_in"] = F.l1_loss(student, context.teacher(tiles))
        if self.zoom_out:
            height, width = (side - side % context.scale for side in context.lq.shape[-2:])
            if not height or not width:
                given = "x".join(map(str, context.lq.shape[-2:]))
                message = f"DUKD: LR patches of {given} cannot be reduced {context.scale} times"
                raise OptionsError(f"{message}; raise gt_size, or set zoom_out: false")
            target = context.lq[..., :height, :width]
            small = reduced(target, context.scale)
            probability = probability if self.zoom_out_consistency else 0.0
            which = drawn_operations(context, "DUKD zoom-out", 1, probability, small)
            student = undone(context.student(applied(small, which)), which)
            parts["l_zoom_out"] = F.l1_loss(student, context.teacher(small))
            parts["l_zoom_out_pix"] = F.l1_loss(student, target)
        return parts

    def _tiles(self, context: StepContext) -> torch.Tensor:
        """Tiles of I_GT, (B `num_patches`, C, H, W), those of one image after each other."""
        scale = context.scale
        height, width = context.lq.shape[-2:]
        tiles = []
        for image, generator in zip(context.hr, context.generators("DUKD tiles"), strict=True):
            for place in generator.permutation(scale**2)[: self.num_patches].tolist():
                top, left = place // scale * height, place % scale * width
                tiles.append(image[:, top : top + height, left : left + width])
        return torch.stack(tiles)


@METHOD_REGISTRY.register()
class LabelConsistency(LossTerm):
    """L1(I_S, A^-1(T(A(I_LR)))): label consistency on the teacher's input, as the public code of DCKD adds it.

    Operations are drawn for each image from its seed; patches that are not square are not transposed.

    Args:
        probability: of each operation, in [0, 1].
        loss_weight: weight of `l_consistency`.
    """

    batch_scope = "image"
    teacher_needs = "the teacher on other images"
    gt_needs = ""

    def __init__(self, *, probability: Probability = 0.5, loss_weight: Weight = 1.0) -> None:
        check_arguments(LabelConsistency, locals())
        super().__init__()
        self.probability = probability
        self.weights = {"l_consistency": loss_weight}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_consistency`."""
        assert context.teacher is not None
        which = drawn_operations(context, "label consistency", 1, self.probability, context.lq)
        target = undone(context.teacher(applied(context.lq, which)), which)
        return {"l_consistency": F.l1_loss(context.sr, target)}


def drawn_operations(
    context: StepContext, purpose: str, count: int, probability: float, images: torch.Tensor
) -> torch.Tensor:
    """Which operations to apply to `images`, `count` of each sample: bool (N, 4), on the CPU."""
    drawn = [rng.random((count, len(OPERATIONS))) for rng in context.generators(purpose)]
    which = torch.from_numpy(np.concatenate(drawn) < probability)
    if images.shape[-2] != images.shape[-1]:
        which[:, -1] = False
    return which


def applied(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Applies to each image (N, C, H, W) the operations of its row of `which`, bool (N, 4); transposes only squares."""
    return _run(images, which, range(len(OPERATIONS)))


def undone(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """The inverse of `applied`, also on images enlarged since; that of the colour inversion up to rounding."""
    return _run(images, which, reversed(range(len(OPERATIONS))))


def _run(images: torch.Tensor, which: torch.Tensor, order: Iterable[int]) -> torch.Tensor:
    for number in order:
        chosen = which[:, number]
        if chosen.any():
            chosen = chosen.to(images.device).view(-1, 1, 1, 1)
            images = torch.where(chosen, OPERATIONS[number](images), images)
    return images


def reduced(images: torch.Tensor, scale: int) -> torch.Tensor:
    """Images (B, C, H, W), of sides that `scale` divides, reduced as by MATLAB's imresize, on their device."""
    rows, columns = (_reduction(side, scale, images.device) for side in images.shape[-2:])
    # In float64, which no setting of the matrix products' precision touches.
    return (rows @ images.double() @ columns.T).to(images.dtype)


@lru_cache(maxsize=16)
def _reduction(length: int, scale: int, device: torch.device) -> torch.Tensor:
    """The matrix by which imresize reduces one axis, float64 (length / scale, length)."""
    # Its columns are reduced unit vectors, each resized as an image of `scale` equal columns, which become one.
    units = np.repeat(np.eye(length)[:, None, :], scale, axis=1)
    return torch.from_numpy(imresize(units, 1 / scale)[:, 0]).to(device)

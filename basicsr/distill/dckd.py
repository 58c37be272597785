"""DCKD (Zhou et al., AAAI 2025): contrast with images of an earlier student, and categories of a VQGAN."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.arch_util import Frozen, check_images_for
from basicsr.archs.vqgan_arch import VQGANEncoder, category_log_probabilities
from basicsr.distill.base import LossTerm, NetworkPair, StepContext
from basicsr.distill.features import Others, summed_distances
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Iterations, Label, Probability, Weight
from basicsr.utils.registry import METHOD_REGISTRY, Conflict, Misfit, check_arguments

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
EPSILON = 1e-7
_UPDATE_STEPS = (1000, 2000, 3000)

Degradation = Literal["noise", "blur", "resize", "mix"]
NOISE_SIGMA = (1.0, 30.0)  # of 255
GRAY_PROBABILITY = 0.5
KERNEL_SIZES = (3, 5, 7, 9, 11)
BLUR_SIGMA = (0.1, 2.0)  # pixels, along each axis
SHRINK, ENLARGE = (0.5, 1.0), (1.0, 1.5)
ENLARGE_PROBABILITY = 0.25
MODES = ("area", "bilinear", "bicubic")


@METHOD_REGISTRY.register()
class DCKD(LossTerm):
    """l_dcl and l_ce, seen through the frozen encoder of a VQGAN; for any two networks, at any scale, 1 among them.

    Zhou et al., "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration", AAAI 2025. Its loss is
    L1(I_S, I_GT) + L1(I_S, I_T) + 0.1 l_dcl + 0.001 l_ce. Where its code or we differ: see docs/reproducing.md.

    Dynamic contrastive regularisation (eqs. 4-6): in the features f_i of five layers I_S is drawn to I_T and away from
    N negatives, images that an earlier state of the student makes of degraded inputs:

        I_j = F_his(D_j(I_LR))
        l_dcl = mean over the batch of sum_i lambda_i d(f_i(I_S), f_i(I_T)) / (sum_j d(f_i(I_S), f_i(I_j)) + 1e-7)

    d is the mean absolute difference over one image's channels and positions. The history model F_his is a copy of the
    student before training, in eval mode, saved in the training state and no part of the exported student. It is
    updated after each iteration t that s divides: theta_his = a theta_his + (1 - a) theta_student.

    Distribution mapping (eqs. 7-9): at each position of the encoder's latent F the codebook's entries e_m are
    categories; eq. 8 is printed without the minus sign, by which the farthest entry would be the likeliest:

        C = softmax over m of -||F - e_m||^2,  l_ce = mean over positions and batch of -sum_m C^T_m log C^S_m

    Args:
        contrastive: whether there is l_dcl. Without it there is no history model.
        distribution: whether there is l_ce.
        dcl_weight: weight of l_dcl.
        ce_weight: weight of l_ce.
        num_negatives: N.
        degradation: 'noise', 'blur', 'resize' or 'mix'; see `degrade`.
        include_undegraded: whether one of the N is made of the input as it is.
        layer_weights: lambda_i, from the highest resolution to the lowest.
        attenuation: a.
        update_steps: s, in iterations, of one period after the other; the last one stays.
        period: after how many iterations the next of `update_steps` holds.
        input_range: what 0 and 1 become before the encoder.
        quotient: eq. 5's, of each 'image' by itself, or of means over the 'batch' of one process.
        double_softmax: whether l_ce takes the student's probabilities as if they were logits.
        history_of: whether the history model follows the 'student' or the moving 'average' of its weights, which
            needs `train: ema_decay`.
        vqgan_weights: see `VQGANEncoder`.
    """

    batch_scope = "image"
    teacher_needs = ""
    gt_needs = ""
    history: nn.Module | None

    def __init__(
        self,
        *,
        contrastive: bool = True,
        distribution: bool = True,
        dcl_weight: Weight = 0.1,
        ce_weight: Weight = 0.001,
        num_negatives: Others = 5,
        degradation: Degradation = "noise",
        include_undegraded: bool = False,
        layer_weights: Sequence[Weight] = LAYER_WEIGHTS,
        attenuation: Probability = 0.1,
        update_steps: Sequence[Iterations] = _UPDATE_STEPS,
        period: Iterations = 100_000,
        input_range: tuple[Label, Label] = (-1.0, 1.0),
        quotient: Literal["image", "batch"] = "image",
        double_softmax: bool = False,
        history_of: Literal["student", "average"] = "student",
        vqgan_weights: str | None = None,
    ) -> None:
        check_arguments(DCKD, locals())
        super().__init__()
        self.contrastive, self.distribution = contrastive, distribution
        self.num_negatives, self.include_undegraded = num_negatives, include_undegraded
        self.degradation: Degradation = degradation
        self.layer_weights = tuple(layer_weights)
        self.attenuation = attenuation
        self.quotient, self.double_softmax = quotient, double_softmax
        self.needs_average = contrastive and history_of == "average"
        self.update_steps, self.period = tuple(update_steps), period
        self.weights = {"l_dcl": dcl_weight} if contrastive else {}
        if distribution:
            self.weights["l_ce"] = ce_weight
        self.history = None
        self.vqgan = Frozen(VQGANEncoder(vqgan_weights=vqgan_weights, input_range=input_range))
        layers = len(self.vqgan.network.sizes.ch_mult)
        if len(self.layer_weights) != layers:
            raise OptionsError(
                f"DCKD: layer_weights has {len(self.layer_weights)} entries, the VQGAN {layers} layers; give each one"
            )

    @staticmethod
    def conflicts(
        contrastive: bool, distribution: bool, update_steps: Sequence[int], input_range: tuple[float, float]
    ) -> Iterator[Conflict]:
        if not (contrastive or distribution):
            yield "contrastive", "is false, as is distribution; turn one on, or leave the method out"
        if not update_steps:
            yield "update_steps", "is [], allowed: one or more, each from 1"
        if not input_range[0] < input_range[1]:
            yield "input_range", f"is {list(input_range)}; allowed: the lower and the upper end, as [-1, 1]"

    @staticmethod
    def misfits(contrastive: bool, update_steps: Sequence[int], period: int, total_iter: int) -> Iterator[Misfit]:
        if contrastive and update_steps[0] > total_iter:
            yield Misfit(
                "update_steps",
                f"begins with {update_steps[0]}, but total_iter is {total_iter}: the history model stays as it began",
            )
        periods = math.ceil(total_iter / period)
        if contrastive and periods < len(update_steps) and tuple(update_steps) != _UPDATE_STEPS:
            yield Misfit(
                "update_steps",
                f"has {len(update_steps)} entries, but total_iter {total_iter} has {periods} periods of {period}: the"
                " last ones are not reached",
            )

    def attach(self, networks: NetworkPair) -> None:
        """Copies the student, as the first state of the history model."""
        if self.contrastive:
            self.history = copy.deepcopy(networks.student.network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DCKD:
        """As ever, but the history model stays in eval mode."""
        super().train(mode)
        if self.history is not None:
            self.history.eval()
        return self

    def after_update(self, student: nn.Module, iteration: int) -> None:
        """Updates the history model, where it follows the student, when it is due."""
        if not self.needs_average:
            self._follow(student, iteration)

    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Updates the history model, where it follows the moving average, when it is due."""
        if self.needs_average:
            self._follow(average, iteration)

    @torch.no_grad()
    def _follow(self, student: nn.Module, iteration: int) -> None:
        """One step of eq. 6, if it is due. Buffers are copied as they are."""
        step = self.update_steps[min((iteration - 1) // self.period, len(self.update_steps) - 1)]
        if self.history is None or iteration % step:
            return
        for own, new in zip(self.history.parameters(), student.parameters(), strict=True):
            own.lerp_(new, 1 - self.attenuation)
        for buffer, present in zip(self.history.buffers(), student.buffers(), strict=True):
            buffer.copy_(present)

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_dcl` and `l_ce`, those that are on; raises OptionsError for unfit images."""
        self.check_output(tuple(context.sr.shape[1:]))
        with context.autocast():
            student, student_latent = self.vqgan(context.sr, with_latent=self.distribution)
            with torch.no_grad():
                teacher, teacher_latent = self.vqgan(context.teacher_output, with_latent=self.distribution)
        parts = {}
        if self.contrastive:
            parts["l_dcl"] = self._contrast(context, student, teacher)
        if self.distribution:
            codebook = self.vqgan.network.codebook
            target = category_log_probabilities(teacher_latent, codebook).exp()
            own = category_log_probabilities(student_latent, codebook)
            if self.double_softmax:
                own = F.log_softmax(own.exp(), dim=1)
            parts["l_ce"] = -(target * own).sum(1).mean()
        return parts

    def check_output(self, shape: Sequence[int]) -> None:
        check_images_for("DCKD", "VQGAN", shape, self.vqgan.network.factor)

    def _contrast(
        self, context: StepContext, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """L_dcl by the features of I_S and of I_T."""
        near = summed_distances(student, [teacher])
        far = summed_distances(student, (self._features(context, one) for one in self._negatives(context)))
        total = torch.zeros_like(near[0])
        if self.quotient == "batch":
            near, far = ([distances.mean(0, keepdim=True) for distances in each] for each in (near, far))
            total = total[:1]
        for weight, apart, aside in zip(self.layer_weights, near, far, strict=True):
            total = total + weight * apart / (aside + EPSILON)
        return total.mean()

    def _features(self, context: StepContext, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """f(I); returned, for a generator would hold those of one negative while it makes the next."""
        with context.autocast():
            features: Sequence[torch.Tensor] = self.vqgan(images, with_latent=False)[0]
        return features

    @torch.no_grad()
    def _negatives(self, context: StepContext) -> Iterator[torch.Tensor]:
        """I_1 to I_N, each (B, 3, sH, sW)."""
        assert self.history is not None
        for number in range(1, self.num_negatives + 1):
            lq = context.lq
            if number > 1 or not self.include_undegraded:
                lq = degrade(lq, self.degradation, context.generators(f"DCKD negative {number}"))
            with context.autocast():
                image = at_least_float32(self.history(lq))
            yield image


@torch.no_grad()
def degrade(images: torch.Tensor, kind: Degradation, generators: Sequence[np.random.Generator]) -> torch.Tensor:
    """Degrades every image (B, C, H, W) in [0, 1] in a way of its own, without gradients; one generator for each.

    - 'noise': Gaussian, of a standard deviation in [1, 30] of 255; with probability 0.5 gray, the same in all channels.
    - 'blur': an anisotropic Gaussian of standard deviations in [0.1, 2] pixels, turned by any angle, cut off to an odd
      size from 3 to 11; images are mirrored at their borders, and OptionsError is raised where they are too small.
    - 'resize': down by a factor in [0.5, 1] (with probability 3/4) or up by one in [1, 1.5], and back, each by area,
      bilinear or bicubic interpolation. By a factor near 1 nothing may change.
    - 'mix': blur, resize, noise, resize back, in Real-ESRGAN's order.
    """
    if kind not in _KINDS:
        raise OptionsError(f"DCKD: degradation is '{kind}'; allowed: {', '.join(_KINDS)}")
    pairs = zip(images, generators, strict=True)
    return torch.stack([_KINDS[kind](image, generator).clamp(0, 1) for image, generator in pairs])


def gaussian_kernel(size: int, sigmas: tuple[float, float], angle: float) -> np.ndarray:
    """exp(-u^2 / (2 s_1^2) - v^2 / (2 s_2^2)) of sum 1, float64 (size, size); u, v are x, y turned by `angle`."""
    positions = np.arange(size) - size // 2
    y, x = np.meshgrid(positions, positions, indexing="ij")
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigmas[0]) ** 2 + (v / sigmas[1]) ** 2))
    return kernel / kernel.sum()


def _noise(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    sigma = generator.uniform(*NOISE_SIGMA) / 255
    channels = 1 if generator.random() < GRAY_PROBABILITY else len(image)
    field = torch.Generator(image.device).manual_seed(int(generator.integers(2**63)))
    shape = (channels, *image.shape[1:])
    return image + sigma * torch.randn(shape, generator=field, dtype=image.dtype, device=image.device)


def _blur(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    size = int(generator.choice(KERNEL_SIZES))
    first, second = generator.uniform(*BLUR_SIGMA, size=2)
    kernel = torch.from_numpy(gaussian_kernel(size, (first, second), generator.uniform(-np.pi, np.pi)))
    if min(image.shape[1:]) <= size // 2:
        least = KERNEL_SIZES[-1] // 2 + 1
        raise OptionsError(
            f"DCKD: an LR image of {image.shape[1]}x{image.shape[2]} is too small to be blurred by {size}x{size}"
            f" pixels; raise gt_size so that it has {least} at least, or take degradation 'noise'"
        )
    padded = F.pad(image[:, None], [size // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel.to(image)[None, None])[:, 0]


def _rescaled(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    scales = ENLARGE if generator.random() < ENLARGE_PROBABILITY else SHRINK
    scale = generator.uniform(*scales)
    height, width = (max(1, int(length * scale)) for length in image.shape[1:])
    return _to_size(image, (height, width), generator)


def _to_size(image: torch.Tensor, size: Sequence[int], generator: np.random.Generator) -> torch.Tensor:
    mode = str(generator.choice(MODES))
    return F.interpolate(image[None], size=tuple(size), mode=mode)[0]


def _resize(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    return _to_size(_rescaled(image, generator), image.shape[1:], generator)


def _mix(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    noisy = _noise(_rescaled(_blur(image, generator), generator), generator)
    # Between the steps, too, Real-ESRGAN's images stay images.
    return _to_size(noisy.clamp(0, 1), image.shape[1:], generator)


_KINDS = {"noise": _noise, "blur": _blur, "resize": _resize, "mix": _mix}

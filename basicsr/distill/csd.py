"""CSD (Wang et al., IJCAI 2021): contrast of the student's image with the teacher's and with bicubic ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.arch_util import Frozen, check_images_for
from basicsr.archs.vgg_arch import VGGFeatureExtractor, layer_problems
from basicsr.distill.base import LossTerm, NetworkPair, StepContext
from basicsr.distill.features import Others, summed_distances
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Weight
from basicsr.utils.registry import ARCH_REGISTRY, METHOD_REGISTRY, Conflict, Problem, check_arguments

LAYER_WEIGHTS = {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4, "relu5_1": 1.0}
EPSILON = 1e-7
VGG_SMALLEST = 16  # four poolings

VGGInput = Literal["imagenet", "range255"]

# Attributes of modules in which networks with shared weights must agree, and the options that set them.
_EQUAL = {"upscale_factor": "upscale", "res_scale": "res_scale", "img_range": "img_range"}


@METHOD_REGISTRY.register()
class CSD(LossTerm):
    """In features phi_j of a frozen VGG-19, I_S is drawn to I_T and away from bicubic images N_k; for any two networks.

    Wang et al., "Towards Compact Single Image Super-Resolution via Contrastive Self-distillation", IJCAI 2021.

        l_csd = mean over the batch of sum_j w_j d(phi_j(I_T), phi_j(I_S)) / (sum_k d(phi_j(N_k), phi_j(I_S)) + 1e-7)

    d is the mean absolute difference over channels and positions. The N_k, the same for all images of a process's
    batch, are LR images of it, drawn without repetition from the run's seed and the iteration and enlarged by PyTorch's
    bicubic kernel (a = -0.75, not clipped). A smaller batch is taken whole, and its mean stands for the missing ones,
    so the loss is as strong however a batch is split among processes. The published code differs: see docs/methods.md.

    Args:
        num_negatives: K.
        loss_weight: weight of l_csd.
        layer_weights: w_j by layer of the VGG; where left out, 1/32, 1/16, 1/8, 1/4, 1 from relu1_1 to relu5_1.
        vgg_input: 'imagenet' normalises images by ImageNet's mean and deviation; 'range255' multiplies them by 255.
        vgg_weights: see `VGGFeatureExtractor`.
    """

    teacher_needs = ""
    gt_needs = ""

    def __init__(
        self,
        *,
        num_negatives: Others = 10,
        loss_weight: Weight = 200.0,
        layer_weights: Mapping[str, Weight] | None = None,
        vgg_input: VGGInput = "imagenet",
        vgg_weights: str | None = None,
    ) -> None:
        check_arguments(CSD, locals(), type(self).__name__)
        super().__init__()
        self.num_negatives = num_negatives
        self.layer_weights = dict(LAYER_WEIGHTS if layer_weights is None else layer_weights)
        self._factor = 1.0 if vgg_input == "imagenet" else 255.0
        self.weights = {"l_csd": loss_weight}
        self.vgg = Frozen(
            VGGFeatureExtractor(
                layer_name_list=list(self.layer_weights),
                use_input_norm=vgg_input == "imagenet",
                vgg_weights=vgg_weights,
            )
        )

    @staticmethod
    def conflicts(layer_weights: Mapping[str, float] | None) -> Iterator[Conflict | Problem]:
        yield from layer_problems(layer_weights or ())
        if layer_weights is not None and not any(layer_weights.values()):
            yield "layer_weights", "names no layer with a weight above 0; give one, or leave it out"

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_csd`."""
        return {"l_csd": self._contrast(context, context.teacher_output)}

    def check_output(self, shape: Sequence[int]) -> None:
        check_images_for(type(self).__name__, "VGG", shape, VGG_SMALLEST)

    def _contrast(self, context: StepContext, teacher: torch.Tensor) -> torch.Tensor:
        """L_csd with I_T = `teacher`, whose gradients are computed where it asks for them."""
        self.check_output(tuple(context.sr.shape[1:]))
        student = self._features(context, context.sr)
        positive = self._features(context, teacher)
        with torch.no_grad():
            negatives = self._features(context, self._negatives(context))
        count = len(next(iter(negatives.values())))
        aside = summed_distances(list(student.values()), zip(*negatives.values(), strict=True))
        total = context.sr.new_zeros(len(context.sr))
        for (layer, features), others in zip(student.items(), aside, strict=True):
            difference = at_least_float32(features) - at_least_float32(positive[layer])
            apart = difference.abs().flatten(1).mean(1)
            total = total + self.layer_weights[layer] * apart / (others * (self.num_negatives / count) + EPSILON)
        return total.mean()

    def _negatives(self, context: StepContext) -> torch.Tensor:
        """N_1 to N_K, (K, C, sH, sW)."""
        batch = len(context.lq)
        drawn = context.step_generator("CSD negatives").permutation(batch)[: self.num_negatives]
        chosen = context.lq[torch.from_numpy(drawn).to(context.lq.device)]
        return F.interpolate(chosen, size=context.sr.shape[-2:], mode="bicubic", align_corners=False)

    def _features(self, context: StepContext, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with context.autocast():
            features: dict[str, torch.Tensor] = self.vgg(images * self._factor)
        return features


@METHOD_REGISTRY.register()
class SharedCSD(CSD):
    """The original's self-distillation: the student is the teacher's first channels and shares its weights; both learn.

    A copy of the teacher, `wide`, is trained as a head in the student's place, from the teacher's loaded weights, with
    its own L1(wide(I_LR), I_GT). The student runs with the leading slices of its weights; a slice of the upsampling
    convolution keeps whole groups of the pixel shuffle. After each update the slices are copied into the student, an
    ordinary narrow network for validation, moving average and export; `pretrain_network_g` is overwritten at the start.
    `wide` is saved in the training state. Other terms see the teacher as it was loaded.

    For two networks of one class with `slices_are_networks`, such as EDSR, that differ in widths only: `num_feat`, and
    in RCAN `squeeze_factor`. Other arguments: see `CSD`.

    Args:
        teacher_weight: weight of the teacher's own reconstruction loss.
        detach_teacher: whether L_csd leaves I_T as it is, as in the published runs; otherwise it draws I_T to I_S, too.
    """

    needs_teacher = False
    teacher_needs = "the teacher's weights"
    gt_needs = "HR images, from which the teacher learns (l_wide)"
    replaces_student = True
    wide: nn.Module

    def __init__(
        self,
        *,
        num_negatives: Others = 10,
        loss_weight: Weight = 200.0,
        teacher_weight: Weight = 1.0,
        detach_teacher: bool = True,
        layer_weights: Mapping[str, Weight] | None = None,
        vgg_input: VGGInput = "imagenet",
        vgg_weights: str | None = None,
    ) -> None:
        super().__init__(
            num_negatives=num_negatives,
            loss_weight=loss_weight,
            layer_weights=layer_weights,
            vgg_input=vgg_input,
            vgg_weights=vgg_weights,
        )
        self.weights = {"l_csd": loss_weight, "l_wide": teacher_weight}
        self.detach_teacher = detach_teacher
        self._shapes: dict[str, torch.Size] = {}

    def attach(self, networks: NetworkPair) -> None:
        """Copies the teacher, and hands the student its first channels."""
        student, teacher = networks.student.network, networks.teacher.network
        _check_shareable(student, teacher)
        self._shapes = {name: parameter.shape for name, parameter in student.named_parameters()}
        self.wide = copy.deepcopy(teacher).requires_grad_(True).train()
        student.requires_grad_(False)
        self.after_update(student, 0)

    def student_weights(self) -> dict[str, torch.Tensor]:
        """The leading slices of `wide`'s weights, by the names of the student's parameters."""
        wide = dict(self.wide.named_parameters())
        return {name: wide[name][tuple(slice(length) for length in shape)] for name, shape in self._shapes.items()}

    def trained_network(self) -> nn.Module:
        """`wide`."""
        return self.wide

    @torch.no_grad()
    def after_update(self, student: nn.Module, iteration: int) -> None:
        """Copies the slices into the student's own parameters."""
        weights = self.student_weights()
        for name, parameter in student.named_parameters():
            parameter.copy_(weights[name])

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_csd` and `l_wide`."""
        with context.autocast():
            teacher = at_least_float32(self.wide(context.lq))
        return {
            "l_csd": self._contrast(context, teacher.detach() if self.detach_teacher else teacher),
            "l_wide": F.l1_loss(teacher, context.hr),
        }


def _check_shareable(student: nn.Module, teacher: nn.Module) -> None:
    """Raises OptionsError unless the student is the teacher with fewer channels."""
    if type(student) is not type(teacher) or not getattr(student, "slices_are_networks", False):
        allowed = [name for name, kind in ARCH_REGISTRY if getattr(kind, "slices_are_networks", False)]
        raise OptionsError(
            f"SharedCSD: network_g is {type(student).__name__}, network_t {type(teacher).__name__}; allowed:"
            f" {' or '.join(f'two {name}' for name in allowed)}; CSD takes any two networks"
        )
    own = {name: tuple(parameter.shape) for name, parameter in student.named_parameters()}
    shared = {name: tuple(parameter.shape) for name, parameter in teacher.named_parameters()}
    if single := [name for name in (*own, *shared) if name not in own or name not in shared]:
        raise OptionsError(
            f"SharedCSD: only {'network_g' if single[0] in own else 'network_t'} has '{single[0]}'; give both the same"
            " num_block, num_group and upscale, or use CSD, which takes any two networks"
        )
    for name, module in student.named_modules():
        other = teacher.get_submodule(name)
        for attribute, option in _EQUAL.items():
            if getattr(module, attribute, None) != getattr(other, attribute, None):
                raise OptionsError(
                    f"SharedCSD: {option} is {getattr(module, attribute)} in network_g, {getattr(other, attribute)} in"
                    " network_t; they share their weights, give both the same"
                )
    if not torch.equal(student.get_buffer("mean"), teacher.get_buffer("mean")):
        raise OptionsError("SharedCSD: network_g and network_t differ in rgb_mean or num_in_ch; give both the same")
    if own == shared:
        raise OptionsError("SharedCSD: network_g is as wide as network_t; lower its num_feat, a quarter as published")
    for name, shape in own.items():
        if any(length > limit for length, limit in zip(shape, shared[name], strict=True)):
            raise OptionsError(
                f"SharedCSD: '{name}' is {shape} in network_g, {shared[name]} in network_t; the student must not be"
                " wider than the teacher: lower its num_feat, or raise its squeeze_factor"
            )

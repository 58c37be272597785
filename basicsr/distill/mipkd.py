"""MiPKD (Li et al., ICLR 2025): mixed features and mixed blocks of student and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.distill.base import LossTerm, NetworkPair, StepContext, boundaries, nothing_of
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import BelowOne, Features, Few, Iterations, Probability, Weight
from basicsr.utils.registry import METHOD_REGISTRY, Conflict, Misfit, check_arguments

Route = Literal["student", "teacher"]
MaskKind = Literal["random", "grid", "cosine", "cka"]
EncoderKind = Literal["conv", "mlp", "shared", "none"]

OF_THE_AUTOENCODER = ("autoencoder", "autoencoder_weight", "autoencoder_until")
OF_THE_MIXER = ("encoder", "latent_channels", "mask", "mask_probability", "feature_weight", *OF_THE_AUTOENCODER)


@METHOD_REGISTRY.register()
class MiPKD(LossTerm):
    """Mixes the student's features with the teacher's, and the student's blocks with the teacher's.

    Li et al., "Knowledge Distillation with Multi-granularity Mixture of Priors for Image Super-Resolution", ICLR 2025.
    At each of K positions, which cut the bodies of both networks into even parts:

    Feature prior mixer, eqs. 3 to 5: Z_S = E_S(F_S) and Z_T = E_T(F_T) lie in one latent space; a mask I^M, drawn for
    each image, mixes them, and a decoder makes the enhanced features,
        F_E = D(Z_S (1 - I^M) + Z_T I^M),  l_feat = L1(F_E, F_T),  l_ae = L1(D(Z_T), F_T).

    Block prior mixer, eqs. 6 to 8: F_E goes on through the stages that follow and the reconstruction of the student
    (R = 1) or of the teacher (R = 0), or is dropped (D = 0), with R and D fair and independent coins, tossed once for
    each step and position:
        l_block = w L1(I_E, I_T) + (1 - w) L1(I_E, I_GT), zero where F_E is dropped.
    Gradients pass through the teacher's frozen stages. Trained 1x1 convolutions bring features from one width to the
    other. Without the feature mixer F_S itself goes on.

    Each part is the sum over the positions (eq. 9); L1 is a mean over elements. L_rec and L_kd of eq. 9 are `pixel_opt`
    and `resp_kd_opt`, both with weight 1. What the paper leaves open, and our choices: docs/reproducing.md. Features
    are compared unscaled: with `img_range: 255` l_feat and l_ae are about 255 times as large as with 1. Memory depends
    on the coins (docs/methods.md).

    Args:
        positions: K.
        feature_mixer: whether there are encoders, decoder, l_feat and l_ae.
        block_mixer: whether there is l_block.
        autoencoder: whether there is l_ae (Table 10).
        encoder: 'conv', 'mlp', 'shared' or 'none' (Tables 7 and 8), see `LatentSpace`. With 'none' nothing is encoded
            and there is no l_ae.
        latent_channels: channels of the latent space; the teacher's where left out.
        mask: 'random', 'grid', 'cosine' or 'cka', see `mixing_mask`.
        mask_probability: the probability that I^M is 1 at an element; with 'cosine' and 'cka' the share of positions or
            channels.
        feature_weight: lambda_feat.
        autoencoder_weight: weight of l_ae.
        autoencoder_until: the last iteration that has l_ae; where left out, all have.
        block_weight: lambda_block.
        ground_truth_share: 1 - w.
        coins: 'position': R_k rules all that follows position k; 'block': only the part up to the next position.
    """

    batch_scope = "image"
    teacher_needs = "the teacher's features and stages"
    runs_student_parts = True
    without_effect = (
        ({"feature_mixer": False}, OF_THE_MIXER),
        ({"block_mixer": False}, ("block_weight", "ground_truth_share", "coins")),
        ({"encoder": "none"}, OF_THE_AUTOENCODER),
        ({"autoencoder": False}, ("autoencoder_weight", "autoencoder_until")),
    )

    @staticmethod
    def gt_needs(options: Mapping[str, Any]) -> str:
        """HR images are targets beside the teacher's."""
        reads = options.get("block_mixer", True) and options.get("ground_truth_share", 0.5) > 0
        return "HR images as targets of l_block, unless ground_truth_share is 0" if reads else ""

    def __init__(
        self,
        *,
        positions: Few = 4,
        feature_mixer: bool = True,
        block_mixer: bool = True,
        autoencoder: bool = True,
        encoder: EncoderKind = "conv",
        latent_channels: Features | None = None,
        mask: MaskKind = "random",
        mask_probability: BelowOne = 0.5,
        feature_weight: Weight = 1.0,
        autoencoder_weight: Weight = 1.0,
        autoencoder_until: Iterations | None = None,
        block_weight: Weight = 0.1,
        ground_truth_share: Probability = 0.5,
        coins: Literal["position", "block"] = "position",
    ) -> None:
        check_arguments(MiPKD, locals())
        super().__init__()
        self.encoder: EncoderKind = encoder
        self.mask: MaskKind = mask
        self.latent_channels, self.mask_probability = latent_channels, mask_probability
        self.ground_truth_share, self._positions = ground_truth_share, positions
        self.autoencoder_until, self.coins = autoencoder_until, coins
        self.weights = {}
        if feature_mixer:
            self.weights["l_feat"] = feature_weight
            if autoencoder and encoder != "none":
                self.weights["l_ae"] = autoencoder_weight
        if block_mixer:
            self.weights["l_block"] = block_weight
        self.spaces = nn.ModuleList()
        self.to_student, self.to_teacher = nn.ModuleList(), nn.ModuleList()
        self.crossings = nn.ModuleDict()

    @staticmethod
    def conflicts(
        feature_mixer: bool,
        block_mixer: bool,
        encoder: str,
        latent_channels: int | None,
        mask: str,
        mask_probability: float,
    ) -> Iterator[Conflict]:
        if not (feature_mixer or block_mixer):
            yield "feature_mixer", "is false, as is block_mixer; set one to true"
        if mask == "grid" and mask_probability != 0.5:
            yield "mask_probability", f"is {mask_probability}, but mask 'grid' is half the teacher's; leave it out"
        if latent_channels is not None and encoder == "none":
            yield "latent_channels", "means nothing to encoder 'none', which has no latent space; leave it out"

    @staticmethod
    def misfits(autoencoder_until: int | None, total_iter: int) -> Iterator[Misfit]:
        if autoencoder_until is not None and autoencoder_until > total_iter:
            yield Misfit("autoencoder_until", f"is {autoencoder_until}, after the end, as total_iter is {total_iter}")

    def attach(self, networks: NetworkPair) -> None:
        """Finds the positions and makes the heads; raises OptionsError for a network that is not built of stages."""
        count = self._positions
        # In a dict they are no submodules: the model holds the student, and the teacher is in no checkpoint.
        self._networks = {"student": networks.student.staged, "teacher": networks.teacher.staged}
        self._starts = {key: boundaries(len(each.stage_names), count) for key, each in self._networks.items()}
        self.student_taps = networks.student.positions(count)
        self.teacher_taps = networks.teacher.positions(count)
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            student, teacher = networks.student.shape(own)[0], networks.teacher.shape(other)[0]
            enhanced = student
            if "l_feat" in self.weights:
                enhanced = teacher
                self.spaces.append(LatentSpace(student, teacher, self.latent_channels or teacher, self.encoder))
            if "l_block" in self.weights:
                self.to_student.append(bridge(enhanced, student))
                self.to_teacher.append(bridge(enhanced, teacher))
                if self.coins == "block" and len(self.to_student) > 1:
                    widths = {"student": bridge(teacher, student), "teacher": bridge(student, teacher)}
                    self.crossings[str(len(self.to_student) - 1)] = nn.ModuleDict(widths)

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_feat`, `l_ae` and `l_block`, those that are on; raises OptionsError if features differ in size."""
        pairs = self._features(context)
        parts: dict[str, torch.Tensor] = {}
        going_on = [student for student, _ in pairs]
        if "l_feat" in self.weights:
            going_on, parts = self._mixed(context, pairs)
        if "l_block" in self.weights:
            loss = context.sr.new_zeros(())
            coins = tossed_coins(context, self._positions)
            for number, (kept, route) in enumerate(coins):
                if not kept:
                    continue
                path = [route] * (self._positions - number)
                if self.coins == "block":
                    path = [side for _, side in coins[number:]]
                image = self._continued(context, going_on[number], path)
                loss = loss + (1 - self.ground_truth_share) * _distance(image, context.teacher_output)
                if self.ground_truth_share > 0:
                    loss = loss + self.ground_truth_share * _distance(image, context.hr)
            parts["l_block"] = loss
        # Which stages and bridges a step needs is drawn; ranks average the gradients of all.
        bridges = (self.to_student, self.to_teacher, self.crossings)
        unused = nothing_of([context.sr, *(parameter for bridge in bridges for parameter in bridge.parameters())])
        return {name: part + unused for name, part in parts.items()}

    def _features(self, context: StepContext) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """F_S and F_T at each position."""
        pairs = []
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            student, teacher = context.student_features[own], context.teacher_features[other]
            if student.shape[-2:] != teacher.shape[-2:]:
                sizes = ["x".join(map(str, features.shape[-2:])) for features in (student, teacher)]
                raise OptionsError(
                    f"MiPKD: '{own}' of the student gives {sizes[0]} features, '{other}' of the teacher {sizes[1]}, and"
                    " each must go on in the other network; choose LR patches that are a multiple of the windows"
                )
            pairs.append((at_least_float32(student), at_least_float32(teacher)))
        return pairs

    def _mixed(
        self, context: StepContext, pairs: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """F_E at each position, and the feature prior mixer's losses."""
        enhanced, distances, own_distances = [], [], []
        encodes_itself = "l_ae" in self.weights and context.iteration <= (self.autoencoder_until or context.iteration)
        for number, ((student, teacher), space) in enumerate(zip(pairs, self.spaces, strict=True)):
            assert isinstance(space, LatentSpace)
            with context.autocast():
                own, other = space(student, teacher)
            purpose = f"mask of the feature prior mixer {number}"
            mask = mixing_mask(self.mask, own, other, self.mask_probability, context, purpose)
            with context.autocast():
                enhanced.append(space.decode(torch.where(mask, other, own)))
                if encodes_itself:
                    own_distances.append(_distance(space.decode(other), teacher))
            distances.append(_distance(enhanced[-1], teacher))
        parts = {"l_feat": torch.stack(distances).sum()}
        if "l_ae" in self.weights:
            parts["l_ae"] = torch.stack(own_distances).sum() if own_distances else context.sr.new_zeros(())
        return enhanced, parts

    def _continued(self, context: StepContext, features: torch.Tensor, path: Sequence[Route]) -> torch.Tensor:
        """I_E: the features through one part after each position, of the networks in `path`; the last reconstructs."""
        number = self._positions - len(path)
        with context.autocast():
            # What the stems keep is computed anew: one convolution, and with the student's gradients.
            kept = {route: self._networks[route].stem(context.lq)[1] for route in dict.fromkeys(path)}
            features = (self.to_student if path[0] == "student" else self.to_teacher)[number](features)
            for at, (before, route) in enumerate(pairwise(path), start=number):
                first, last = self._starts[before][at : at + 2]
                features = self._networks[before].run_stages(features, kept[before], first, last)
                if route != before:
                    features = cast(nn.ModuleDict, self.crossings[str(at + 1)])[route](features)
            return self._networks[path[-1]].reconstruct(features, kept[path[-1]])


def tossed_coins(context: StepContext, positions: int) -> list[tuple[bool, Route]]:
    """Whether each position's features go on (D), and in which network (R): the same on every rank."""
    drawn = context.step_generator("routes of the block prior mixer").integers(0, 2, size=(positions, 2))
    names: tuple[Route, Route] = ("teacher", "student")
    return [(bool(kept), names[through_student]) for kept, through_student in drawn]


def _distance(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(at_least_float32(features), at_least_float32(target))


@torch.no_grad()
def mixing_mask(
    kind: MaskKind, student: torch.Tensor, teacher: torch.Tensor, share: float, context: StepContext, purpose: str
) -> torch.Tensor:
    """I^M: true where the teacher's features Z_T (B, C, H, W) are taken, false where the student's are; no gradients.

    'random' draws every element of every image, true with probability `share`;
    'grid' is a chequerboard over the positions, true in the upper left one, alike in all channels;
    'cosine' is true at the `share` of an image's positions with the lowest cosine of the two vectors of channels;
    'cka' is true in the `share` of an image's channels with the lowest `channel_cka`, alike at all positions.
    Axes along which all are alike have length 1.
    """
    if kind == "grid":
        rows, columns = (torch.arange(side, device=student.device) for side in student.shape[-2:])
        return ((rows[:, None] + columns) % 2 == 0)[None, None]
    if kind == "cosine":
        likeness = F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1)
        return lowest(likeness.flatten(1), share).view(-1, 1, *student.shape[-2:])
    if kind == "cka":
        return lowest(channel_cka(student, teacher), share)[..., None, None]
    mask = context.uniform(purpose, tuple(student.shape[1:])) < share
    # torch.where lays out its result as it finds the mask.
    in_channels_last = student.is_contiguous(memory_format=torch.channels_last)
    return mask.contiguous(memory_format=torch.channels_last) if in_channels_last else mask


def lowest(values: torch.Tensor, share: float) -> torch.Tensor:
    """True at the round(`share` N) smallest of the N `values` of each image, (B, N); of equals, at the first."""
    count = round(share * values.shape[1])
    order = values.argsort(dim=1, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order[:, :count], True)


def channel_cka(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Linear centred kernel alignment of each channel with the teacher's, (B, C) in [0, 1]; zero where one is constant.

    ||X^T Y||^2 / (||X^T X|| ||Y^T Y||), Frobenius norms, of channels (H, W) as H samples of W features, centred over H.
    """
    x, y = (at_least_float32(z) - at_least_float32(z).mean(-2, keepdim=True) for z in (student, teacher))
    shared, own, other = (
        torch.linalg.matrix_norm(left.transpose(-1, -2) @ right) for left, right in ((x, y), (x, x), (y, y))
    )
    return shared.square() / (own * other).clamp_min(torch.finfo(own.dtype).tiny)


class LatentSpace(nn.Module):
    """One space for the features of student and teacher at one position: E_S, E_T and D of eq. 3.

    The paper says "convolutional" and "MLP": here two layers with a ReLU between, 3x3 or 1x1. 'shared': one
    convolutional encoder for both; 'none': the teacher's features are the latent space, without decoder. In the
    latter two a 1x1 convolution lifts the student's features to the teacher's width.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, latent_channels: int, encoder: EncoderKind
    ) -> None:
        super().__init__()
        if encoder == "none":
            assert latent_channels == teacher_channels, "without encoders the teacher's features are the latent space"
            self.encode_teacher: nn.Module = nn.Identity()
            self.decode: nn.Module = nn.Identity()
        else:
            size = 1 if encoder == "mlp" else 3
            self.encode_teacher = _two_layers(teacher_channels, latent_channels, latent_channels, size)
            self.decode = _two_layers(latent_channels, latent_channels, teacher_channels, size)
        # None: the teacher's serves both. Held under one name only, it is once in the training state.
        self.encode_student: nn.Module | None = None
        self.lift: nn.Module = nn.Identity()
        if encoder in ("conv", "mlp"):
            self.encode_student = _two_layers(student_channels, latent_channels, latent_channels, size)
        else:
            self.lift = bridge(student_channels, teacher_channels)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Z_S and Z_T, both (B, C, H, W), of F_S (B, C_S, H, W) and F_T (B, C_T, H, W)."""
        encode_student = self.encode_student if self.encode_student is not None else self.encode_teacher
        return encode_student(self.lift(student)), self.encode_teacher(teacher)


def bridge(channels: int, wanted: int) -> nn.Module:
    """A 1x1 convolution from one width to another, or nothing where they are equal."""
    return nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)


def _two_layers(inputs: int, hidden: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, size, padding=size // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, size, padding=size // 2),
    )

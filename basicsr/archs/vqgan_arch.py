"""The encoder and codebook of VQGAN (Esser, Rombach and Ommer, CVPR 2021): features and categories of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import fill_at_random, in_colour
from basicsr.files.torch_files import check_not_all_zero, check_weights, load_state_dict_only
from basicsr.utils.errors import CheckpointError, OptionsError

WEIGHTS_FOLDER = Path("experiments/pretrained_models")
WEIGHTS_NAME = "vqgan_imagenet_f16_1024"
RANDOM_WEIGHTS = "random"

_GROUPS = 32
_SUFFIXES = (".ckpt", ".pth", ".pt")
_KEPT = ("encoder.", "quant_conv.", "quantize.embedding.")
_NO_WEIGHTS = (
    f"the VQGAN's weights are not in {WEIGHTS_FOLDER}: download last.ckpt of 'VQGAN ImageNet (f=16), 1024'"
    " (github.com/CompVis/taming-transformers, https://heibox.uni-heidelberg.de/f/140747ba53464f49b476/?dl=1) and"
    f" put it there as {WEIGHTS_NAME}.ckpt, or name the file in vqgan_weights"
)


@dataclass(frozen=True)
class VQGANSizes:
    """Sizes read from weights, `ch_mult` in multiples of `ch`; by default of ImageNet's VQGAN with 1024 codes."""

    embed_dim: int = 256
    num_entries: int = 1024
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: tuple[bool, ...] = (False, False, False, False, True)
    z_channels: int = 256


# The sizes of `vqgan_weights: random`.
SMALL = VQGANSizes(embed_dim=16, num_entries=32, ch=32, num_res_blocks=1, z_channels=16)


class VQGANEncoder(nn.Module):
    """The encoder of a VQGAN, frozen, with its codebook; keys are those of taming-transformers. In no registry.

    Args:
        vqgan_weights: file with the weights, a checkpoint of taming-transformers; its sizes are read off them, its
            decoder and loss are not read. None: `vqgan_imagenet_f16_1024*` in `experiments/pretrained_models`.
            'random': a small untrained encoder, always the same one; for tests.
        input_range: what 0 and 1 of an image become before the first convolution. VQGANs are trained on [-1, 1].

    Attributes:
        sizes: of the network.
        factor: the latent has one position for each `factor` x `factor` pixels.

    Raises:
        OptionsError: `input_range` is no range.
        CheckpointError: the weights are missing, damaged, or of another network.
    """

    def __init__(self, *, vqgan_weights: str | None = None, input_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        if len(input_range) != 2 or not input_range[0] < input_range[1]:
            raise OptionsError(f"input_range is {list(input_range)}; allowed: the lower and the upper end, as [-1, 1]")
        self.input_range = (float(input_range[0]), float(input_range[1]))
        path = local_weights() if vqgan_weights is None else Path(vqgan_weights)
        if path is None:
            raise CheckpointError(_NO_WEIGHTS)
        is_random = vqgan_weights == RANDOM_WEIGHTS
        state = {} if is_random else load_state_dict_only(path, prefixes=_KEPT)
        self.sizes = SMALL if is_random else _sizes(state, path)
        self.factor: int = 2 ** (len(self.sizes.ch_mult) - 1)
        # On 'meta' the layers draw no random numbers and take no memory before the weights come.
        with torch.device("meta"):
            self.encoder = _Encoder(self.sizes)
            self.quant_conv = nn.Conv2d(self.sizes.z_channels, self.sizes.embed_dim, 1)
            entries = nn.Embedding(self.sizes.num_entries, self.sizes.embed_dim)
            self.quantize = nn.ModuleDict({"embedding": entries})
        if is_random:
            fill_at_random(self, "linear")
        else:
            _load(self, state, path)
        self.requires_grad_(False).eval()

    @property
    def codebook(self) -> Tensor:
        """The entries e, (N, embed_dim)."""
        return self.quantize["embedding"].get_parameter("weight")

    def forward(self, x: Tensor, *, with_latent: bool = True) -> tuple[list[Tensor], Tensor | None]:
        """The features and the latent of images (B, 3 or 1, H, W) in [0, 1]; OptionsError for sides below `factor`.

        Features are the outputs of the first residual block at each resolution, (B, ch * ch_mult[i], H / 2^i, W / 2^i)
        rounded down. The latent (B, embed_dim, H / factor, W / factor) may be compared with the codebook; None unless
        `with_latent`.
        """
        if min(x.shape[-2:]) < self.factor:
            raise OptionsError(
                f"images of {x.shape[-2]}x{x.shape[-1]} are too small for this VQGAN, which makes one position of"
                f" {self.factor}x{self.factor} pixels; raise gt_size to {self.factor} at least"
            )
        low, high = self.input_range
        x = in_colour(x)
        features, latent = self.encoder(low + (high - low) * x, with_latent)
        return features, None if latent is None else self.quant_conv(latent)


def category_log_probabilities(latent: Tensor, codebook: Tensor) -> Tensor:
    """log softmax_n(-||F - e_n||^2) at each position: how likely each entry of the codebook is there.

    For the latent F, (B, C, h, w), and the codebook e, (N, C); returns (B, N, h, w), at least float32.
    """
    dtype = torch.promote_types(latent.dtype, torch.float32)
    latent, codebook = latent.to(dtype), codebook.to(dtype)
    # A common shift changes no distance, and near zero the terms below cancel less.
    centre = codebook.mean(0)
    entries, shifted = codebook - centre, latent - centre[:, None, None]
    # -||F - e||^2 = 2 F e - ||e||^2 - ||F||^2, and the last is the same for all entries: the softmax does not see it.
    with torch.autocast(latent.device.type, enabled=False):
        scores = 2 * torch.einsum("bchw,nc->bnhw", shifted, entries) - entries.square().sum(1)[:, None, None]
        return F.log_softmax(scores, dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


class _ResidualBlock(nn.Module):
    """Two times normalisation, swish and 3x3 convolution, beside a shortcut that is 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class _Attention(nn.Module):
    """Each position attends to all: x + P(V softmax(Q^T K / sqrt(C))^T) of the normalised x, with 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((value @ weights.transpose(1, 2)).view(x.shape))


class _Level(nn.Module):
    """The blocks of one resolution, then the way down to the next."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (blocks - 1)
        self.block = nn.ModuleList(_ResidualBlock(width, out_channels) for width in widths)
        self.attn = nn.ModuleList(_Attention(out_channels) for _ in range(blocks if attention else 0))
        self.downsample = None
        if not last:  # padded on the right and at the bottom only
            down = nn.Conv2d(out_channels, out_channels, 3, stride=2)
            self.downsample = nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=down))

    def forward(self, x: Tensor, only_first: bool) -> tuple[Tensor, Tensor]:
        """The first block's output, and what goes to the next level; the former twice with `only_first`."""
        feature = x = self.block[0](x)
        if only_first:
            return feature, feature
        for number, block in enumerate(self.block):
            x = block(x) if number else x
            x = self.attn[number](x) if self.attn else x
        return feature, x if self.downsample is None else self.downsample(x)


class _Encoder(nn.Module):
    def __init__(self, sizes: VQGANSizes) -> None:
        super().__init__()
        widths = [sizes.ch * multiple for multiple in sizes.ch_mult]
        self.conv_in = nn.Conv2d(3, sizes.ch, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(before, width, sizes.num_res_blocks, attention, number == len(widths))
            for number, (before, width, attention) in enumerate(
                zip([sizes.ch, *widths[:-1]], widths, sizes.attention, strict=True), start=1
            )
        )
        width = widths[-1]
        blocks = {"block_1": _ResidualBlock(width, width), "attn_1": _Attention(width)}
        self.mid = nn.Sequential(OrderedDict(blocks, block_2=_ResidualBlock(width, width)))
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], sizes.z_channels, 3, padding=1)

    def forward(self, x: Tensor, with_latent: bool) -> tuple[list[Tensor], Tensor | None]:
        features: list[Tensor] = []
        x = self.conv_in(x)
        for level in self.down:
            feature, x = level(x, level is self.down[-1] and not with_latent)
            features.append(feature)
        return features, self.conv_out(F.silu(self.norm_out(self.mid(x)))) if with_latent else None


def local_weights() -> Path | None:
    """The file that is taken where none is named, if it is there."""
    found = sorted(path for path in WEIGHTS_FOLDER.glob(f"{WEIGHTS_NAME}*") if path.suffix in _SUFFIXES)
    return found[0] if found else None


def _sizes(state: Mapping[str, Tensor], path: Path) -> VQGANSizes:
    """What the shapes say; whether all of them agree is found on loading."""
    dimensions = {"encoder.conv_in.weight": 4, "quant_conv.weight": 4, "quantize.embedding.weight": 2}
    for key, dimension in dimensions.items():
        if key not in state or state[key].dim() != dimension:
            raise CheckpointError(_refusal(path, f"it has no {key} of {dimension} dimensions"))
    ch = len(state["encoder.conv_in.weight"])
    levels = range(_count(state, "encoder.down.{}.block.0.conv1.bias"))
    widths = [state[f"encoder.down.{level}.block.0.conv1.bias"].numel() for level in levels]
    blocks = _count(state, "encoder.down.0.block.{}.conv1.bias")
    if not blocks or any(width == 0 or width % ch or width % _GROUPS for width in (ch, *widths)):
        shown = ", ".join(map(str, widths)) or "no"
        raise CheckpointError(_refusal(path, f"its encoder has {shown} channels at its resolutions and {ch} before"))
    embed_dim, z_channels = state["quant_conv.weight"].shape[:2]
    return VQGANSizes(
        embed_dim=embed_dim,
        num_entries=len(state["quantize.embedding.weight"]),
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        attention=tuple(f"encoder.down.{level}.attn.0.q.weight" in state for level in levels),
        z_channels=z_channels,
    )


def _refusal(path: Path, reason: str) -> str:
    return f"{path} is no VQGAN with a codebook in the layout of taming-transformers: {reason}; give such a checkpoint"


def _count(state: Mapping[str, Tensor], key: str) -> int:
    number = 0
    while key.format(number) in state:
        number += 1
    return number


def _load(network: VQGANEncoder, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    for key in [*wanted, *state]:
        given, expected = (tuple(held[key].shape) if key in held else "nothing" for held in (state, wanted))
        if given != expected:
            raise CheckpointError(_refusal(path, f"{key} is {given}, its other weights want {expected}"))
    # Views of one short storage are tensors, too: as float32 each would take memory of its own.
    if sum(value.numel() for value in wanted.values()) > path.stat().st_size:
        raise CheckpointError(_refusal(path, "it has fewer bytes than its weights have numbers"))
    check_weights(state, path, wanted)
    check_not_all_zero(state, path)
    network.load_state_dict({key: state[key].float().contiguous() for key in wanted}, assign=True)

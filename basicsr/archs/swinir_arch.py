"""SwinIR: residual groups of Swin transformer blocks between convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from basicsr.archs.arch_util import (
    StagedNetwork,
    Upsample,
    block_conflicts,
    pad_to_multiple,
    to_2tuple,
    trunc_normal_,
    upscale_conflicts,
)
from basicsr.archs.recognition import Recognised
from basicsr.archs.swinir_layout import read_swinir
from basicsr.archs.traits import Trait
from basicsr.utils.errors import DataError
from basicsr.utils.ranges import (
    BelowOne,
    Blocks,
    Factor,
    Features,
    Heads,
    ImageChannels,
    ImageRange,
    PatchSide,
    Ratio,
    Scale,
    Window,
)
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

NormLayer = Callable[[int], nn.Module]


class DropPath(nn.Module):
    """In training, zeroes whole samples with probability `drop_prob` and scales the others up to match."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= self.drop_prob
        return x * (kept / (1 - self.drop_prob)).to(x.dtype)


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts (B, H, W, C) into windows: (B H W / N, N, C), where N = window_size^2."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size**2, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Undoes `window_partition`: (B H W / N, N, C) to (B, H, W, C)."""
    channels = windows.shape[-1]
    grid = (height // window_size, width // window_size)
    x = windows.view(-1, *grid, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shifted_window_mask(
    size: tuple[int, int], window_size: int, shift_size: int, device: torch.device | None = None
) -> Tensor:
    """Attention scores to add, (H W / N, N, N), N = window_size^2: 0, or -100 where the shift joined pixels."""

    def region(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window_size).int() + (position >= length - shift_size).int()

    regions = region(size[0])[:, None] * 3 + region(size[1])[None, :]
    windows = window_partition(regions.view(1, *size, 1), window_size).squeeze(-1)
    return (windows[:, None, :] != windows[:, :, None]).float() * -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention in square windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        side = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side**2, num_heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        pixels = torch.arange(window_size**2)
        row, column = pixels // window_size, pixels % window_size
        rows_apart = row[:, None] - row[None, :] + window_size - 1
        columns_apart = column[:, None] - column[None, :] + window_size - 1
        self.register_buffer("relative_position_index", rows_apart * side + columns_apart)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of `x`, (B M, N, C) of M windows an image; `mask` is (M, N, N)."""
        count, pixels, channels = x.shape
        qkv = self.qkv(x).view(count, pixels, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(pixels, pixels, self.num_heads).permute(2, 0, 1)
        if mask is None:
            scores = scores + bias
        else:  # joined with the bias first, which is small beside the scores of all windows
            per_image = scores.view(-1, mask.shape[0], self.num_heads, pixels, pixels)
            joined = mask[:, None].to(bias.dtype) + bias
            scores = (per_image + joined).view(count, self.num_heads, pixels, pixels)
        weights = self.attn_drop(scores.softmax(dim=-1))
        x = (weights @ value).transpose(1, 2).reshape(count, pixels, channels)
        return self.proj_drop(self.proj(x))


class SwinTransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (B, H, W, dim), with windows shifted by `shift_size`."""

    attn_mask: Tensor | None

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        hidden = int(dim * mlp_ratio)
        layers = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "drop1": nn.Dropout(drop)}
        self.mlp = nn.Sequential(OrderedDict(layers, fc2=nn.Linear(hidden, dim), drop2=nn.Dropout(drop)))
        mask = shifted_window_mask(input_resolution, window_size, shift_size) if shift_size else None
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of `x`; `mask` stands in for `attn_mask` at other sizes."""
        height, width = x.shape[1:3]
        inner = self.norm1(x)
        if self.shift_size:
            inner = torch.roll(inner, (-self.shift_size, -self.shift_size), (1, 2))
            mask = self.attn_mask if mask is None else mask
        else:
            mask = None
        windows = self.attn(window_partition(inner, self.window_size), mask)
        inner = window_reverse(windows, self.window_size, height, width)
        if self.shift_size:
            inner = torch.roll(inner, (self.shift_size, self.shift_size), (1, 2))
        x = x + self.drop_path(inner)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # The mask follows from the size alone, so weights saved at another img_size fit this network too.
        key = prefix + "attn_mask"
        if key in state_dict and self.attn_mask is not None and state_dict[key].shape != self.attn_mask.shape:
            state_dict[key] = self.attn_mask
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class BlockSequence(nn.Module):
    """Swin transformer blocks one after another, windows shifted in every second one."""

    def __init__(self, blocks: Sequence[SwinTransformerBlock], use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of `x`, (B, H, W, C)."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


def residual_convolution(dim: int, resi_connection: str) -> nn.Module:
    """The convolution that ends a residual branch: one 3x3 ('1conv') or a bottleneck of three ('3conv')."""
    if resi_connection == "1conv":
        return nn.Conv2d(dim, dim, 3, 1, 1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, 1, 1),
        nn.LeakyReLU(negative_slope=0.2),
        nn.Conv2d(dim // 4, dim // 4, 1, 1, 0),
        nn.LeakyReLU(negative_slope=0.2),
        nn.Conv2d(dim // 4, dim, 3, 1, 1),
    )


class RSTB(nn.Module):
    """Residual Swin transformer block: x + convolution(blocks(x)), on (B, C, H, W)."""

    def __init__(self, blocks: BlockSequence, dim: int, resi_connection: str) -> None:
        super().__init__()
        self.residual_group = blocks
        self.conv = residual_convolution(dim, resi_connection)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of `x`; `mask` as in SwinTransformerBlock."""
        pixels = self.residual_group(x.permute(0, 2, 3, 1), mask)
        return self.conv(pixels.permute(0, 3, 1, 2)) + x


class SwinInput(NamedTuple):
    """What SwinIR's later parts need of its input: `mask` of shifted windows, `size` before padding."""

    image: Tensor
    shallow: Tensor
    mask: Tensor | None
    size: tuple[int, int]


@ARCH_REGISTRY.register()
class SwinIR(StagedNetwork):
    """SwinIR (Liang et al., Image Restoration Using Swin Transformer, ICCVW 2021).

    Takes images of any size: extended by reflection to multiples of the window inside, then cropped. Each
    entry of `layers` maps (B, C, H, W) to the same shape, C = embed_dim and H, W those of the extended image.

    Args:
        img_size: height and width for which the masks of shifted windows are kept; others work, a bit slower.
            Windows are at most that large, and not shifted if they are as large.
        patch_size: divides `img_size`.
        in_chans: channels of the input and of the output.
        embed_dim: channels of the features, a multiple of every number of heads.
        depths: transformer blocks in each group.
        num_heads: attention heads in each group.
        window_size: side of the attention windows.
        mlp_ratio: hidden channels of each mlp over `embed_dim`.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor on the attention scores; None means (embed_dim / heads)^-0.5.
        drop_rate: dropout of features.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: probability, in training, of leaving out a branch of the last block; the first block's
            is 0, the others' linear between.
        norm_layer: makes a norm of the last axis from its length; not for options files.
        ape: add a learned embedding of the absolute position; then only `img_size` works.
        patch_norm: normalise the features before the first group.
        use_checkpoint: recompute each block in the backward pass, for memory.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1].
        upsampler: 'pixelshuffle' (classical), 'pixelshuffledirect' (lightweight), 'nearest+conv' (real-world,
            x4 only), '' or None (no enlargement, whatever `upscale`; adds the input to the output).
        resi_connection: '1conv' or '3conv' at the end of each group.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset(
        {"attention in windows", "sides extended to multiples", "layer norm over channels"}
    )

    mean: Tensor
    stages_name = "layers"

    def __init__(
        self,
        *,
        img_size: PatchSide | tuple[PatchSide, PatchSide] = 64,
        patch_size: Window | tuple[Window, Window] = 1,
        in_chans: ImageChannels = 3,
        embed_dim: Features = 96,
        depths: tuple[Blocks, ...] = (6, 6, 6, 6),
        num_heads: tuple[Heads, ...] = (6, 6, 6, 6),
        window_size: Window = 7,
        mlp_ratio: Ratio = 4.0,
        qkv_bias: bool = True,
        qk_scale: Factor | None = None,
        drop_rate: BelowOne = 0.0,
        attn_drop_rate: BelowOne = 0.0,
        drop_path_rate: BelowOne = 0.1,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        upscale: Scale = 2,
        img_range: ImageRange = 1.0,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""] | None = "",
        resi_connection: Literal["1conv", "3conv"] = "1conv",
    ) -> None:
        check_arguments(SwinIR, locals())
        super().__init__()
        (height, width), (patch_height, patch_width) = to_2tuple(img_size), to_2tuple(patch_size)
        self.resolution = (height // patch_height, width // patch_width)
        self.window_size = self.padder_size = min(window_size, *self.resolution)
        self.shift_size = window_size // 2 if self.window_size < min(self.resolution) else 0
        self.img_range = img_range
        self.upsampler = upsampler or ""
        self.scale = upscale if upsampler else 1
        rgb_mean = torch.tensor((0.4488, 0.4371, 0.4040)).view(1, 3, 1, 1)
        self.register_buffer("mean", rgb_mean if in_chans == 3 else torch.zeros(1, 1, 1, 1), persistent=False)

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, 1, 1)
        self.patch_embed = nn.ModuleDict({"norm": norm_layer(embed_dim) if patch_norm else nn.Identity()})
        self.absolute_pos_embed = None
        if ape:
            pixels = self.resolution[0] * self.resolution[1]
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, pixels, embed_dim))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        for layer, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            first = sum(depths[:layer])
            blocks = [
                SwinTransformerBlock(
                    dim=embed_dim,
                    input_resolution=self.resolution,
                    num_heads=heads,
                    window_size=self.window_size,
                    shift_size=self.shift_size if index % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path_rate * (first + index) / max(sum(depths) - 1, 1),
                    norm_layer=norm_layer,
                )
                for index in range(depth)
            ]
            self.layers.append(RSTB(BlockSequence(blocks, use_checkpoint), embed_dim, resi_connection))
        self.norm = norm_layer(embed_dim)
        self.conv_after_body = residual_convolution(embed_dim, resi_connection)
        num_feat = 64
        if self.upsampler in ("pixelshuffle", "nearest+conv"):
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, num_feat, 3, 1, 1), nn.LeakyReLU())
        if self.upsampler == "pixelshuffle":
            self.upsample: nn.Module = Upsample(upscale, num_feat)
        elif self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, upscale**2 * in_chans, 3, 1, 1), nn.PixelShuffle(upscale)
            )
        elif self.upsampler == "nearest+conv":
            self.conv_up1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
            self.conv_up2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
            self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
            self.lrelu = nn.LeakyReLU(negative_slope=0.2)
        if self.upsampler != "pixelshuffledirect":
            self.conv_last = nn.Conv2d(num_feat if self.upsampler else embed_dim, in_chans, 3, 1, 1)
        self.apply(_init_weights)

    @staticmethod
    def conflicts(
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        upscale: int,
        upsampler: str | None,
    ) -> Iterator[Conflict]:
        if len(depths) != len(num_heads) or not depths:
            yield "depths", f"has {len(depths)} entries and num_heads {len(num_heads)}: give one per group in each"
        if uneven := [heads for heads in num_heads if embed_dim % heads]:
            yield "embed_dim", f"{embed_dim} is not a multiple of num_heads {uneven[0]}: change either"
        if upsampler == "nearest+conv" and upscale != 4:
            yield "upscale", f"{upscale} is not supported by upsampler 'nearest+conv': give 4"
        if upsampler == "pixelshuffle":
            yield from upscale_conflicts(upscale)
        yield from block_conflicts("depths", sum(depths))
        resolution = [side // patch for side, patch in zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True)]
        window = min(window_size, *resolution)
        if window < 1:
            yield "patch_size", f"{patch_size} is larger than img_size {img_size}: change either"
        elif window < min(resolution) and window > 1 and any(side % window for side in resolution):
            yield (
                "img_size",
                f"{img_size} is not a multiple of window_size {window_size}: change either; images may be of any size"
                " all the same",
            )

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, which are BasicSR's and KAIR's; see `basicsr.archs.recognition`."""
        return read_swinir(state)

    def stem(self, x: Tensor) -> tuple[Tensor, SwinInput]:
        """See `StagedNetwork`; extends images to multiples of the window; with `ape`, other sizes raise DataError."""
        height, width = x.shape[-2:]
        x = (pad_to_multiple(x, self.window_size) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        size = (x.shape[-2], x.shape[-1])
        features = self.patch_embed["norm"](shallow.permute(0, 2, 3, 1))
        if self.absolute_pos_embed is not None:
            if size != self.resolution:
                raise DataError(
                    f"SwinIR with ape takes {self.resolution[0]}x{self.resolution[1]} images, got "
                    f"{size[0]}x{size[1]}: change img_size or set ape to false"
                )
            features = features + self.absolute_pos_embed.view(1, *size, -1)
        features = features.permute(0, 3, 1, 2)
        mask = None
        if self.shift_size and size != self.resolution:
            mask = shifted_window_mask(size, self.window_size, self.shift_size, x.device)
        return self.pos_drop(features), SwinInput(x, shallow, mask, (height, width))

    def run_stages(self, features: Tensor, kept: SwinInput, first: int = 0, last: int | None = None) -> Tensor:
        for layer in self.layers[first:last]:
            features = layer(features, kept.mask)
        return features

    def reconstruct(self, features: Tensor, kept: SwinInput) -> Tensor:
        features = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.conv_after_body(features) + kept.shallow
        if self.upsampler in ("pixelshuffle", "nearest+conv"):
            x = self.conv_before_upsample(x)
        if self.upsampler in ("pixelshuffle", "pixelshuffledirect"):
            x = self.upsample(x)
        if self.upsampler == "nearest+conv":
            for conv in (self.conv_up1, self.conv_up2):
                x = self.lrelu(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
            x = self.lrelu(self.conv_hr(x))
        if self.upsampler != "pixelshuffledirect":
            x = self.conv_last(x)
        if not self.upsampler:
            x = kept.image + x
        height, width = kept.size
        return (x / self.img_range + self.mean)[..., : height * self.scale, : width * self.scale]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

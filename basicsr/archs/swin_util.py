"""Swin transformer blocks for image restoration: attention inside windows, shifted in every second block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from basicsr.archs.arch_util import trunc_normal_

NormLayer = Callable[[int], nn.Module]


class DropPath(nn.Module):
    """In training, zeroes whole samples with probability `drop_prob` and scales the others up to match."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`, (B, ...)."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= self.drop_prob
        return x * (kept / (1 - self.drop_prob)).to(x.dtype)


class Mlp(nn.Module):
    """Two linear layers with GELU between, on the last axis; (..., C) to the same shape."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


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
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        mask = shifted_window_mask(input_resolution, window_size, shift_size) if shift_size else None
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of `x`; `mask` stands in for `attn_mask` at other sizes."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        height, width = x.shape[1:3]
        shift = self.shift_size
        if not shift:
            windows = self.attn(window_partition(x, self.window_size))
            return window_reverse(windows, self.window_size, height, width)
        x = torch.roll(x, (-shift, -shift), (1, 2))
        windows = self.attn(window_partition(x, self.window_size), self.attn_mask if mask is None else mask)
        x = window_reverse(windows, self.window_size, height, width)
        return torch.roll(x, (shift, shift), (1, 2))

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


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extends (B, C, H, W) at the bottom and at the right by reflection, repeated if need be; one row is replicated."""
    height, width = (-(-size // multiple) * multiple for size in x.shape[-2:])
    x = x.expand(-1, -1, height, -1) if x.shape[-2] == 1 else x
    x = x.expand(-1, -1, -1, width) if x.shape[-1] == 1 else x
    while x.shape[-2:] != (height, width):
        # PyTorch reflects at most all but the edge.
        right = min(width - x.shape[-1], x.shape[-1] - 1)
        bottom = min(height - x.shape[-2], x.shape[-2] - 1)
        x = F.pad(x, (0, right, 0, bottom), "reflect")
    return x

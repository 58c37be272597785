"""Buffers that follow from a network's sizes: attention masks, indices of relative positions, counters of batches.

Files may lack them, as slimmed releases do, or have masks for images of another size. The built network has its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.utils.hooks import RemovableHandle

_DERIVED = re.compile(
    r"(attn_mask(_\d)?|relative_position_index(_\w+)?|relative_coords_table|rpe_biases|biases_[hv]|init_pos|position_ids"
    r"|num_batches_tracked)"
)
_INDEX, _TABLE = "relative_position_index", "relative_position_bias_table"


def is_derived(key: str) -> bool:
    """Whether the name says that a buffer follows from sizes; a parameter of this name does not."""
    return _DERIVED.fullmatch(key.rpartition(".")[2]) is not None


def is_mask(key: str) -> bool:
    """Whether the name is that of an attention mask, which is kept for one size of image."""
    return key.rpartition(".")[2].startswith("attn_mask")


def derived_keys(network: nn.Module) -> set[str]:
    """The buffers in the state dict of `network` that follow from its sizes."""
    buffers = {name for name, _ in network.named_buffers()}
    return {key for key in network.state_dict() if key in buffers and is_derived(key)}


@contextmanager
def own_buffers_where_missing(stand_ins: Mapping[str, Tensor]) -> Iterator[None]:
    """Modules built inside keep their own derived buffers on loading, where the state dict has none or a stand-in.

    Of masks also where they are for another size.
    """
    hooks: list[RemovableHandle] = []

    def fill(module: nn.Module, state: dict[str, Tensor], prefix: str, *details: Any) -> None:
        own = {prefix + name for name in module.state_dict() if is_derived(name)}
        for name, buffer in module.named_buffers(recurse=False):
            key = prefix + name
            other_size = is_mask(key) and key in state and state[key].shape != buffer.shape
            if key in own and (key not in state or key in stand_ins or other_size):
                state[key] = buffer

    def watch(module: nn.Module, name: str, buffer: Tensor | None) -> None:
        if is_derived(name) and module not in watched:
            watched.add(module)
            hooks.append(module.register_load_state_dict_pre_hook(fill))

    watched: set[nn.Module] = set()
    hooks.append(register_module_buffer_registration_hook(watch))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stand_ins_for(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Derived buffers that `state` lacks and spandrel reads sizes from, of the right shape; what was assumed, in words.

    Their numbers are without meaning but for the last row of `rpe_biases`.
    """
    assumed: list[str] = []
    found = {**_of_windows(state, assumed), **_of_stripes(state, assumed)}
    for key, value in state.items():
        if key == "to_img.offset.weight":  # RealPLKSR's sampling
            found["to_img.init_pos"] = torch.zeros(1, value.shape[0], 1, 1)
        elif key.endswith(".position_encoding.pe.weight"):  # IPT
            found[key.replace("pe.weight", "position_ids")] = torch.zeros(1, value.shape[0], dtype=torch.int64)
    return {key: value for key, value in found.items() if key not in state}, tuple(assumed)


def _of_windows(state: Mapping[str, Tensor], assumed: list[str]) -> dict[str, Tensor]:
    """Of SwinIR, Swin2SR, DRCT, Uformer, HAT and ATD, whose windows are squares."""
    tables = {key.removesuffix(f".{_TABLE}"): value for key, value in state.items() if key.endswith(f".{_TABLE}")}
    sides = {owner: (math.isqrt(table.shape[0]) + 1) // 2 for owner, table in tables.items() if table.ndim == 2}
    overlapping = next((owner for owner in sides if owner.endswith("overlap_attn")), None)
    if overlapping is not None:  # HAT; its larger windows have sides that add up with the smaller ones'
        side = next((side for owner, side in sides.items() if owner.endswith(".attn")), 0)
        larger = math.isqrt(tables[overlapping].shape[0]) + 1 - side
        return {f"{_INDEX}_SA": _index(side**2), f"{_INDEX}_OCA": _index(side**2, larger**2)}
    if side := next((side for owner, side in sides.items() if owner.endswith("attn_win")), 0):  # ATD
        return {f"{_INDEX}_SA": _index(side**2)}
    sides |= dict.fromkeys(_computing(state), _side_of_swin2sr(state, assumed))
    found = {f"{owner}.{_INDEX}": _index(side**2) for owner, side in sides.items()}
    if sides and not any(map(is_mask, state)):
        side = next(iter(sides.values()))
        shifted = ("layers.0.swin2", "layers.0.residual_group.blocks.1")
        masks = {f"{owner}.attn_mask" for owner in shifted if f"{owner}.norm1.weight" in state}
        found |= {key: torch.zeros(64, side**2, side**2) for key in masks}
        assumed += ["shifted windows"] if masks else []
    return found


def _computing(state: Mapping[str, Tensor]) -> list[str]:
    """The attention modules of Swin2SR, which computes what others have in a table."""
    end = ".attn.logit_scale"
    return [key.removesuffix(".logit_scale") for key in state if ".residual_group.blocks." in key and key.endswith(end)]


def _side_of_swin2sr(state: Mapping[str, Tensor], assumed: list[str]) -> int:
    shapes = {key.rpartition(".")[2]: value.shape for key, value in state.items() if is_derived(key)}
    if "relative_coords_table" in shapes:
        return (shapes["relative_coords_table"][1] + 1) // 2
    if known := shapes.get(_INDEX, shapes.get("attn_mask")):
        return math.isqrt(known[-1])
    assumed += ["windows of 8"] if _computing(state) else []
    return 8


def _of_stripes(state: Mapping[str, Tensor], assumed: list[str]) -> dict[str, Tensor]:
    """Of CRAFT, DAT and RGT, whose windows are oblong."""
    if "layers.0.residual_group.srwa_blocks.0.mlp.fc1.bias" in state:
        return _of_craft(state, assumed)
    end = ".attns.0.pos.pos_proj.weight"
    owners = [key.removesuffix(".0.pos.pos_proj.weight") for key in state if key.endswith(end)]
    if not owners:
        return {}
    offsets, index = (state.get(f"{owners[0]}.0.{name}") for name in ("rpe_biases", _INDEX))
    masks = [value.shape[-1] for key, value in state.items() if is_mask(key)]
    if offsets is not None:
        height, width = (int(last) + 1 for last in offsets[-1].tolist())
    else:
        # DAT-S, with many channels and a narrow feed-forward part, has shorter windows than all others published.
        widths = [state.get(f"layers.0.blocks.0.{name}.weight") for name in ("attn.proj", "ffn.fc1")]
        channels, hidden = (0 if weight is None else weight.shape[0] for weight in widths)
        pixels = next(iter([*([] if index is None else [index.shape[0]]), *masks]), 0)
        height, width = 8, pixels // 8 or (16 if channels >= 180 and hidden == 2 * channels else 32)
        assumed.append(f"windows of {height}x{width}")
    found: dict[str, Tensor] = {}
    for owner in (f"{owner}.{part}" for owner in owners for part in range(2)):
        found |= {f"{owner}.rpe_biases": _offsets(height, width), f"{owner}.{_INDEX}": _index(height * width)}
    return found


def _of_craft(state: Mapping[str, Tensor], assumed: list[str]) -> dict[str, Tensor]:
    """Its windows of 4x16 are as published; all that its buffers show is the product and the number of offsets."""
    found = {f"{_INDEX}_{kind}": _index(64) for kind in "hv"} | {f"biases_{kind}": _offsets(4, 16) for kind in "hv"}
    if not any(key in state for key in found):
        assumed.append("windows of 4x16")
    return found


def _index(pixels: int, others: int | None = None) -> Tensor:
    return torch.zeros(pixels, others or pixels, dtype=torch.int64)


def _offsets(height: int, width: int) -> Tensor:
    offsets = torch.zeros((2 * height - 1) * (2 * width - 1), 2)
    offsets[-1] = torch.tensor((height - 1, width - 1))
    return offsets

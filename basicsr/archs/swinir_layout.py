"""How SwinIR is recognised from its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from basicsr.archs.recognition import Recognised, first_fitting, numbered, ours, upsampling_scale

SHIFTED_WINDOWS = "shifted windows"
"""Assumed of a SwinIR without masks: slimmed files lack them, and so do networks whose images are one window."""

_KEYS = ours(
    r"absolute_pos_embed|conv_first|conv_last|conv_hr|conv_up[12]|norm|patch_embed\.norm|upsample\.\d+",
    r"conv_before_upsample\.0|conv_after_body(\.[024])?|layers\.\d+\.conv(\.[024])?",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.qkv|attn\.proj)",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.attn\.relative_position_(bias_table|index)",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.attn_mask",
)
_NEEDED = ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight")


def read_swinir(state: Mapping[str, Tensor]) -> Recognised | None:
    """The authors' keys, which are BasicSR's and KAIR's; None for those of other networks."""
    if (fitting := first_fitting(state, {"SwinIR's original": _KEYS}, _NEEDED)) is None:
        return None
    layout, state = fitting
    block = "layers.0.residual_group.blocks.0"
    width, colours = state["conv_first.weight"].shape[:2]
    window = (math.isqrt(state[f"{block}.attn.relative_position_bias_table"].shape[0]) + 1) // 2
    groups = [f"layers.{group}.residual_group.blocks" for group in range(numbered(state, "layers"))]
    hidden = state[f"{block}.mlp.fc1.weight"].shape[0]
    upsampler, scale = "", 1
    if "conv_up1.weight" in state:
        upsampler, scale = "nearest+conv", 4 if "conv_up2.weight" in state else 2
    elif "conv_before_upsample.0.weight" in state:
        upsampler, scale = "pixelshuffle", upsampling_scale(state)
    elif "upsample.0.weight" in state:
        upsampler, scale = "pixelshuffledirect", math.isqrt(state["upsample.0.weight"].shape[0] // colours)
    # The size that masks or position embeddings were saved for.
    masks = [value for key, value in state.items() if key.endswith(".attn_mask")]
    size = 8 * window
    assumed: tuple[str, ...] = ()
    if "absolute_pos_embed" in state:
        size = math.isqrt(state["absolute_pos_embed"].shape[1])
    elif masks:
        size = math.isqrt(masks[0].shape[0]) * window
    elif any(key.endswith(".relative_position_index") for key in state):
        assumed = (SHIFTED_WINDOWS,)
    img_range = 255.0 if window == 7 and not upsampler else 1.0
    options = {
        "type": "SwinIR",
        "img_size": size,
        "in_chans": colours,
        "embed_dim": width,
        "depths": tuple(numbered(state, group) for group in groups),
        "num_heads": tuple(state[f"{group}.0.attn.relative_position_bias_table"].shape[1] for group in groups),
        "window_size": window,
        # A ratio for which int(width * ratio) is `hidden`, whatever the rounding.
        "mlp_ratio": hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width,
        "qkv_bias": f"{block}.attn.qkv.bias" in state,
        "ape": "absolute_pos_embed" in state,
        "patch_norm": "patch_embed.norm.weight" in state,
        "upscale": scale,
        "img_range": img_range,
        "upsampler": upsampler,
        "resi_connection": "1conv" if "conv_after_body.weight" in state else "3conv",
    }
    return Recognised("SwinIR", layout, options, scale, state, (f"img_range {img_range:g}", *assumed))

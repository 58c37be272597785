"""Which hyperparameters the weights of NAFNet and Restormer show; see `layouts`.

Their authors' code builds on BasicSR; its keys are ours. All hyperparameters show in the shapes, but for the factor of
Restormer's feed-forward, of which they show the product with the channels, rounded down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_State = Mapping[str, Tensor]
_STAGES = r"(?:encoder_level[123]|latent|decoder_level[123]|refinement)\.\d+"

NAFNET_RULES = (
    (r"intro|ending|downs\.\d+|ups\.\d+\.0", r"\g<0>"),
    (
        r"(?:encoders\.\d+|middle_blks|decoders\.\d+)\.\d+\.(?:beta|gamma|norm[12]|conv[1-5]|sca\.1)",
        r"\g<0>",
    ),
)
NAFNET_NEEDED = ("intro.weight", "ending.weight", "downs.0.weight", "ups.0.0.weight")

RESTORMER_RULES = (
    (r"patch_embed\.proj|(?:down|up)\d_\d\.body\.0|reduce_chan_level[23]|skip_conv|output", r"\g<0>"),
    (rf"{_STAGES}\.(?:norm[12]\.body|attn\.temperature|attn\.(?:qkv|qkv_dwconv|project_out))", r"\g<0>"),
    (rf"{_STAGES}\.ffn\.(?:project_in|dwconv|project_out)", r"\g<0>"),
)
RESTORMER_NEEDED = (
    "patch_embed.proj.weight",
    "latent.0.attn.temperature",
    "output.weight",
    "reduce_chan_level3.weight",
)


def nafnet_options(state: _State) -> dict[str, Any]:
    """Options of the NAFNet that has these weights."""
    levels = range(_count(state, "downs"))
    return {
        "type": "NAFNet",
        "img_channel": state["intro.weight"].shape[1],
        "width": state["intro.weight"].shape[0],
        "middle_blk_num": _count(state, "middle_blks"),
        "enc_blk_nums": tuple(_count(state, f"encoders.{level}") for level in levels),
        "dec_blk_nums": tuple(_count(state, f"decoders.{level}") for level in levels),
    }


def restormer_options(state: _State) -> dict[str, Any]:
    """Options of the Restormer that has these weights."""
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    dim, colours = state["patch_embed.proj.weight"].shape[:2]
    hidden = [state[f"{level}.0.ffn.project_out.weight"].shape[1] for level in levels]
    return {
        "type": "Restormer",
        "inp_channels": colours,
        "out_channels": state["output.weight"].shape[0],
        "dim": dim,
        "num_blocks": tuple(_count(state, level) for level in levels),
        "num_refinement_blocks": _count(state, "refinement"),
        "heads": tuple(state[f"{level}.0.attn.temperature"].shape[0] for level in levels),
        "ffn_expansion_factor": _factor([dim * 2**level for level in range(4)], hidden),
        "bias": "latent.0.attn.qkv.bias" in state,
        "LayerNorm_type": "WithBias" if "latent.0.norm1.body.bias" in state else "BiasFree",
        "dual_pixel_task": "skip_conv.weight" in state,
    }


def _count(state: _State, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})


def _factor(widths: Sequence[int], hidden: Sequence[int]) -> float:
    """The shortest decimal number f for which int(width f) is what is hidden, at all widths: 2.66 of Restormer's."""
    least = max(inner / width for width, inner in zip(widths, hidden, strict=True))
    for digits in range(17):
        factor = math.ceil(round(least * 10**digits, 6)) / 10**digits
        if [int(width * factor) for width in widths] == list(hidden):
            return factor
    return least

"""Published layouts of weights: which network a state dict is, by keys and shapes alone, and how its keys become ours.

The layouts are those of BasicSR (which are ours; NAFNet and Restormer build on it), EDSR-PyTorch, RCAN's authors,
SwinIR's authors and ESRGAN's authors (whose MSRResNet KAIR has too). Nothing here builds a network or runs one.

EDSR-PyTorch and RCAN's authors run networks on images in [0, 255], with mean shifts at both ends. Ours have `img_range`
and `rgb_mean` instead: f((x - rgb_mean) * img_range) / img_range + rgb_mean for x in [0, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from basicsr.archs.mean_shift import DIV2K_MEAN, with_mean_shift, without_mean_shift
from basicsr.archs.recognition import Recognised, State, UnsupportedWeights, numbered, renamed
from basicsr.utils.registry import ARCH_REGISTRY

SHIFTED_WINDOWS = "shifted windows"
"""Assumed of a SwinIR without masks: slimmed files lack them, and so do networks whose images are one window."""


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """Says which of our networks a state dict (without prefixes such as `module.`) belongs to; None if to none.

    Raises UnsupportedWeights where the layout is known, but our network cannot do what the weights hold.
    """
    for layout, needed, renames, reading in _LAYOUTS:
        converted = renamed(state, renames)
        if converted is not None and all(key in converted for key in needed):
            try:
                return _read(layout, converted, reading)
            except (KeyError, IndexError, ZeroDivisionError, RuntimeError):
                continue  # keys alike, shapes unlike any network's
    for _, network in ARCH_REGISTRY:
        try:
            found = network.from_published(state) if hasattr(network, "from_published") else None
        except (KeyError, IndexError, ZeroDivisionError, RuntimeError):
            continue
        if found is not None:
            return found
    return None


def to_edsr_pytorch(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """Weights of our EDSR under EDSR-PyTorch's keys, mean shifts included, for images in [0, 255].

    `img_range` and `rgb_mean` are the network's. Raises UnsupportedWeights if `state` is not our EDSR's.
    """
    return _original("EDSR", _EDSR_PYTORCH, state, img_range, rgb_mean)


def to_original_rcan(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """As `to_edsr_pytorch`, for our RCAN and its authors' keys. They have no `res_scale`: it must be 1."""
    return _original("RCAN", _RCAN_ORIGINAL, state, img_range, rgb_mean)


# Keys without `.weight` and `.bias`, in their layout and in ours. `#` is a number that both have; `*` one that only
# they have, which counts on from the blocks before it.
_EDSR_PYTORCH = {
    "sub_mean": "sub_mean",
    "add_mean": "add_mean",
    "head.0": "conv_first",
    "body.#.body.0": "body.#.conv1",
    "body.#.body.2": "body.#.conv2",
    "body.*": "conv_after_body",
    "tail.0.#": "upsample.#",
    "tail.1": "conv_last",
}
_RCAN_ORIGINAL = {
    "sub_mean": "sub_mean",
    "add_mean": "add_mean",
    "head.0": "conv_first",
    "body.#.body.#.body.0": "body.#.residual_group.#.rcab.0",
    "body.#.body.#.body.2": "body.#.residual_group.#.rcab.2",
    "body.#.body.#.body.3.conv_du.0": "body.#.residual_group.#.rcab.3.attention.1",
    "body.#.body.#.body.3.conv_du.2": "body.#.residual_group.#.rcab.3.attention.3",
    "body.#.body.*": "body.#.conv",
    "body.*": "conv_after_body",
    "tail.0.#": "upsample.#",
    "tail.1": "conv_last",
}


def _patterns(renames: Mapping[str, str]) -> dict[str, str]:
    """The same as regular expressions and templates."""
    numbered = {theirs: ours.replace("#", r"\1", 1).replace("#", r"\2") for theirs, ours in renames.items()}
    return {re.escape(key).replace(r"\#", r"(\d+)").replace(r"\*", r"\d+"): to for key, to in numbered.items()}


def _original(
    name: str, renames: Mapping[str, str], state: Mapping[str, Tensor], img_range: float, rgb_mean: Sequence[float]
) -> State:
    theirs = renamed(state, _patterns({ours: theirs for theirs, ours in renames.items()}))
    if theirs is None:
        raise UnsupportedWeights(f"these are not the weights of our {name}")
    after = {key: numbered(theirs, key.split(".*")[0]) for key in theirs if "*" in key}
    counted = {key.replace("*", str(after.get(key))): value for key, value in theirs.items()}
    return with_mean_shift(counted, img_range, rgb_mean)


def _ours(*patterns: str) -> dict[str, str]:
    return dict.fromkeys(patterns, r"\g<0>")


_STAGES = r"(?:encoder_level[123]|latent|decoder_level[123]|refinement)\.\d+"
_EDSR = _ours(r"conv_first|conv_after_body|conv_last|body\.\d+\.conv[12]|upsample\.\d+")
_RCAN = _ours(
    r"conv_first|conv_after_body|conv_last|body\.\d+\.conv|upsample\.\d+",
    r"body\.\d+\.residual_group\.\d+\.rcab\.(0|2|3\.attention\.1|3\.attention\.3)",
)
_MSRRESNET = _ours(r"conv_first|body\.\d+\.conv[12]|upconv[12]|conv_hr|conv_last")
_MSRRESNET_ESRGAN = {
    r"conv_first|upconv[12]|conv_last": r"\g<0>",
    r"recon_trunk\.(\d+)\.(conv[12])": r"body.\1.\2",
    "HRconv": "conv_hr",
}
_SWINIR = _ours(
    r"absolute_pos_embed|conv_first|conv_last|conv_hr|conv_up[12]|norm|patch_embed\.norm|upsample\.\d+",
    r"conv_before_upsample\.0|conv_after_body(\.[024])?|layers\.\d+\.conv(\.[024])?",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.qkv|attn\.proj)",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.attn\.relative_position_(bias_table|index)",
    r"layers\.\d+\.residual_group\.blocks\.\d+\.attn_mask",
)
_NAFNET = _ours(
    r"intro|ending|downs\.\d+|ups\.\d+\.0",
    r"(?:encoders\.\d+|middle_blks|decoders\.\d+)\.\d+\.(?:beta|gamma|norm[12]|conv[1-5]|sca\.1)",
)
_RESTORMER = _ours(
    r"patch_embed\.proj|(?:down|up)\d_\d\.body\.0|reduce_chan_level[23]|skip_conv|output",
    rf"{_STAGES}\.(?:norm[12]\.body|attn\.temperature|attn\.(?:qkv|qkv_dwconv|project_out))",
    rf"{_STAGES}\.ffn\.(?:project_in|dwconv|project_out)",
)


def _found(options: dict[str, Any], state: State, *assumed: str) -> Recognised:
    return Recognised(options["type"], "", options, options.get("upscale", 1), state, assumed)


def _read_edsr(state: State) -> Recognised:
    # The published networks of 256 channels have 0.1, those of 64 channels 1.
    res_scale = 0.1 if state["conv_first.weight"].shape[0] >= 256 else 1.0
    options = {**_trunk("EDSR", state), "num_block": numbered(state, "body"), "res_scale": res_scale}
    return _found(options, state, f"res_scale {res_scale:g}")


def _read_rcan(state: State) -> Recognised:
    squeezed = state["body.0.residual_group.0.rcab.3.attention.1.weight"].shape[0]
    options = {
        **_trunk("RCAN", state),
        "num_group": numbered(state, "body"),
        "num_block": numbered(state, "body.0.residual_group"),
        "squeeze_factor": state["conv_first.weight"].shape[0] // squeezed,
    }
    return _found(options, state, "res_scale 1")


def _read_msrresnet(state: State) -> Recognised:
    step = math.isqrt(state["upconv1.weight"].shape[0] // state["upconv1.weight"].shape[1])
    options = {**_trunk("MSRResNet", state), "num_block": numbered(state, "body")}
    return _found({**options, "upscale": step**2 if "upconv2.weight" in state else step}, state)


def _read_swinir(state: State) -> Recognised:
    block = "layers.0.residual_group.blocks.0"
    width, colours = state["conv_first.weight"].shape[:2]
    window = (math.isqrt(state[f"{block}.attn.relative_position_bias_table"].shape[0]) + 1) // 2
    groups = [f"layers.{group}.residual_group.blocks" for group in range(numbered(state, "layers"))]
    hidden = state[f"{block}.mlp.fc1.weight"].shape[0]
    upsampler, scale = "", 1
    if "conv_up1.weight" in state:
        upsampler, scale = "nearest+conv", 4 if "conv_up2.weight" in state else 2
    elif "conv_before_upsample.0.weight" in state:
        upsampler, scale = "pixelshuffle", _upsampling(state)
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
    return _found(options, state, f"img_range {img_range:g}", *assumed)


def _read_nafnet(state: State) -> Recognised:
    levels = range(numbered(state, "downs"))
    options = {
        "type": "NAFNet",
        "img_channel": state["intro.weight"].shape[1],
        "width": state["intro.weight"].shape[0],
        "middle_blk_num": numbered(state, "middle_blks"),
        "enc_blk_nums": tuple(numbered(state, f"encoders.{level}") for level in levels),
        "dec_blk_nums": tuple(numbered(state, f"decoders.{level}") for level in levels),
    }
    return _found(options, state)


def _read_restormer(state: State) -> Recognised:
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    dim, colours = state["patch_embed.proj.weight"].shape[:2]
    hidden = [state[f"{level}.0.ffn.project_out.weight"].shape[1] for level in levels]
    options = {
        "type": "Restormer",
        "inp_channels": colours,
        "out_channels": state["output.weight"].shape[0],
        "dim": dim,
        "num_blocks": tuple(numbered(state, level) for level in levels),
        "num_refinement_blocks": numbered(state, "refinement"),
        "heads": tuple(state[f"{level}.0.attn.temperature"].shape[0] for level in levels),
        "ffn_expansion_factor": _factor([dim * 2**level for level in range(4)], hidden),
        "bias": "latent.0.attn.qkv.bias" in state,
        "LayerNorm_type": "WithBias" if "latent.0.norm1.body.bias" in state else "BiasFree",
        "dual_pixel_task": "skip_conv.weight" in state,
    }
    return _found(options, state)


def _factor(widths: Sequence[int], hidden: Sequence[int]) -> float:
    """The shortest decimal number f for which int(width f) is what is hidden, at all widths: 2.66 of Restormer's."""
    least = max(inner / width for width, inner in zip(widths, hidden, strict=True))
    for digits in range(17):
        factor = math.ceil(round(least * 10**digits, 6)) / 10**digits
        if [int(width * factor) for width in widths] == list(hidden):
            return factor
    return least


def _trunk(architecture: str, state: State) -> dict[str, Any]:
    first, last = state["conv_first.weight"], state["conv_last.weight"]
    options = {"type": architecture, "num_in_ch": first.shape[1], "num_out_ch": last.shape[0]}
    return {**options, "num_feat": first.shape[0], "upscale": _upsampling(state)}


def _upsampling(state: State) -> int:
    steps = [value.shape for key, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in steps)


def _read(layout: str, state: State, reading: Callable[[State], Recognised]) -> Recognised:
    """Reads a layout whose range and mean colour are in its mean shifts, are options, or are neither."""
    if layout in ("EDSR-PyTorch", "RCAN's original"):
        without, img_range, rgb_mean, note = without_mean_shift(state)
        found = reading(without)
        options = {**found.options, "img_range": img_range, "rgb_mean": rgb_mean}
        notes, has_range = (note,) if note else (), "sub_mean.weight" in state
        return replace(found, layout=layout, options=options, notes=notes, has_range=has_range)
    found = replace(reading(state), layout=layout)
    if found.architecture not in ("EDSR", "RCAN"):
        return found
    # Those that BasicSR's networks were published with.
    colours = found.options["num_in_ch"]
    mean = {} if colours == 3 else {"rgb_mean": (0.0,) * colours}
    usual = "the mean colour of DIV2K" if colours == 3 else "no mean colour"
    return replace(found, options={**found.options, **mean}, assumed=(*found.assumed, "img_range 255", usual))


_ENDS = ("conv_first.weight", "conv_last.weight")
_NEEDED_EDSR = (*_ENDS, "body.0.conv1.weight", "conv_after_body.weight")
_NEEDED_RCAN = (*_ENDS, "body.0.residual_group.0.rcab.3.attention.1.weight", "conv_after_body.weight")
_NEEDED_MSRRESNET = (*_ENDS, "body.0.conv1.weight", "upconv1.weight", "conv_hr.weight")
_NEEDED_SWINIR = ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight")
_NEEDED_NAFNET = ("intro.weight", "ending.weight", "downs.0.weight", "ups.0.0.weight")
_NEEDED_RESTORMER = (
    *("patch_embed.proj.weight", "latent.0.attn.temperature", "output.weight", "reduce_chan_level3.weight"),
)
# Whose keys a layout has, the keys of ours that it must have, how keys become ours, and what finds the hyperparameters.
_LAYOUTS: tuple[tuple[str, tuple[str, ...], Mapping[str, str], Callable[[State], Recognised]], ...] = (
    ("BasicSR", _NEEDED_EDSR, _EDSR, _read_edsr),
    ("EDSR-PyTorch", _NEEDED_EDSR, _patterns(_EDSR_PYTORCH), _read_edsr),
    ("BasicSR", _NEEDED_RCAN, _RCAN, _read_rcan),
    ("RCAN's original", _NEEDED_RCAN, _patterns(_RCAN_ORIGINAL), _read_rcan),
    ("BasicSR", _NEEDED_MSRRESNET, _MSRRESNET, _read_msrresnet),
    ("ESRGAN and KAIR", _NEEDED_MSRRESNET, _MSRRESNET_ESRGAN, _read_msrresnet),
    ("SwinIR's original", _NEEDED_SWINIR, _SWINIR, _read_swinir),
    ("BasicSR", _NEEDED_NAFNET, _NAFNET, _read_nafnet),
    ("BasicSR", _NEEDED_RESTORMER, _RESTORMER, _read_restormer),
)

"""Published layouts of weights: which network a state dict is, by its keys and shapes alone, and how it becomes ours.

The layouts are those of BasicSR (which are ours), EDSR-PyTorch, RCAN's authors, SwinIR's authors and ESRGAN's authors
(whose MSRResNet KAIR has too); those of NAFNet and Restormer are in `layouts_restoration`. Nothing here builds a
network or runs one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from basicsr.weights.layouts_restoration import (
    NAFNET_NEEDED,
    NAFNET_RULES,
    RESTORMER_NEEDED,
    RESTORMER_RULES,
    nafnet_options,
    restormer_options,
)
from basicsr.weights.mean_shift import DIV2K_MEAN, State, UnsupportedWeights, with_mean_shift, without_mean_shift

_Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Recognised:
    """A state dict whose network is known.

    Attributes:
        architecture: name of the network in our registry.
        layout: whose keys the file has.
        options: block for `build_network`; what shapes do not show is left to the constructor's defaults, or as
            `assumed` says.
        scale: factor of enlargement.
        state: the weights under our keys.
        assumed: what neither keys nor shapes show, and was taken as it was published; in words.
        notes: what else is worth saying, in words.
        has_range: whether img_range and rgb_mean were read from the file.
    """

    architecture: str
    layout: str
    options: dict[str, Any]
    scale: int
    state: State
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_range: bool = False

    def __str__(self) -> str:
        return f"{self.architecture} with {described(self.options)}"


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """Says which of our networks a state dict belongs to, or None if to none of them.

    Args:
        state: weights by key, without prefixes such as `module.`.

    Raises:
        UnsupportedWeights: the keys are a known layout's, but our network of that name cannot do what they hold.
    """
    for layout in _LAYOUTS:
        converted = _renamed(state, layout.rules)
        if converted is not None and all(key in converted for key in layout.needed):
            try:
                found = layout.read(converted)
            except (KeyError, IndexError, ZeroDivisionError, RuntimeError):
                continue  # keys alike, shapes unlike any network's
            return replace(found, layout=layout.name)
    return None


def described(options: Mapping[str, Any]) -> str:
    """The hyperparameters that people compare networks by, in words: '64 channels, 16 blocks, x2'."""
    words = []
    for names, text in _WORDS:
        value = next((options[name] for name in names if name in options), None)
        if value is not None:
            words.append(text.format("+".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return ", ".join(words)


def to_edsr_pytorch(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """Weights of our EDSR under EDSR-PyTorch's keys, mean shifts included, for images in [0, 255].

    Args:
        state: our EDSR's state dict.
        img_range: the network's.
        rgb_mean: the network's.

    Raises:
        UnsupportedWeights: `state` is not our EDSR's.
    """
    renamed = _renamed(state, _inverse_edsr(state))
    if renamed is None:
        raise UnsupportedWeights("these are not the weights of our EDSR")
    return with_mean_shift(renamed, img_range, rgb_mean)


def to_original_rcan(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """Weights of our RCAN under its authors' keys, mean shifts included, for images in [0, 255].

    The layout has no `res_scale`: it is that of networks whose `res_scale` is 1.

    Args:
        state: our RCAN's state dict.
        img_range: the network's.
        rgb_mean: the network's.

    Raises:
        UnsupportedWeights: `state` is not our RCAN's.
    """
    renamed = _renamed(state, _inverse_rcan(state))
    if renamed is None:
        raise UnsupportedWeights("these are not the weights of our RCAN")
    return with_mean_shift(renamed, img_range, rgb_mean)


_EDSR: _Rules = ((r"conv_first|conv_after_body|conv_last|body\.\d+\.conv[12]|upsample\.\d+", r"\g<0>"),)
_EDSR_PYTORCH: _Rules = (
    (r"sub_mean|add_mean", r"\g<0>"),
    (r"head\.0", "conv_first"),
    (r"body\.(\d+)\.body\.0", r"body.\1.conv1"),
    (r"body\.(\d+)\.body\.2", r"body.\1.conv2"),
    (r"body\.\d+", "conv_after_body"),
    (r"tail\.0\.(\d+)", r"upsample.\1"),
    (r"tail\.1", "conv_last"),
)
_RCAN: _Rules = (
    (r"conv_first|conv_after_body|conv_last|body\.\d+\.conv|upsample\.\d+", r"\g<0>"),
    (r"body\.\d+\.residual_group\.\d+\.rcab\.(0|2|3\.attention\.1|3\.attention\.3)", r"\g<0>"),
)
_RCAN_ORIGINAL: _Rules = (
    (r"sub_mean|add_mean", r"\g<0>"),
    (r"head\.0", "conv_first"),
    (r"body\.(\d+)\.body\.(\d+)\.body\.(0|2)", r"body.\1.residual_group.\2.rcab.\3"),
    (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0", r"body.\1.residual_group.\2.rcab.3.attention.1"),
    (r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2", r"body.\1.residual_group.\2.rcab.3.attention.3"),
    (r"body\.(\d+)\.body\.\d+", r"body.\1.conv"),
    (r"body\.\d+", "conv_after_body"),
    (r"tail\.0\.(\d+)", r"upsample.\1"),
    (r"tail\.1", "conv_last"),
)
_MSRRESNET: _Rules = ((r"conv_first|body\.\d+\.conv[12]|upconv[12]|conv_hr|conv_last", r"\g<0>"),)
_MSRRESNET_ESRGAN: _Rules = (
    (r"conv_first|upconv[12]|conv_last", r"\g<0>"),
    (r"recon_trunk\.(\d+)\.(conv[12])", r"body.\1.\2"),
    ("HRconv", "conv_hr"),
)
_SWINIR: _Rules = (
    (r"absolute_pos_embed|conv_first|conv_last|conv_hr|conv_up[12]|norm|patch_embed\.norm|upsample\.\d+", r"\g<0>"),
    (r"conv_before_upsample\.0|conv_after_body(\.[024])?|layers\.\d+\.conv(\.[024])?", r"\g<0>"),
    (r"layers\.\d+\.residual_group\.blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.qkv|attn\.proj)", r"\g<0>"),
    (r"layers\.\d+\.residual_group\.blocks\.\d+\.attn\.relative_position_(bias_table|index)", r"\g<0>"),
    (r"layers\.\d+\.residual_group\.blocks\.\d+\.attn_mask", r"\g<0>"),
)

_WORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("num_feat", "embed_dim", "width", "dim"), "{} channels"),
    (("num_group",), "{} groups"),
    (("num_block", "depths", "num_blocks"), "{} blocks"),
    (("enc_blk_nums",), "{} blocks down"),
    (("middle_blk_num",), "{} in the middle"),
    (("dec_blk_nums",), "{} up"),
    (("num_refinement_blocks",), "{} of refinement"),
    (("LayerNorm_type",), "norms '{}'"),
    (("window_size",), "windows of {}"),
    (("upsampler",), "upsampler '{}'"),
    (("num_in_ch", "in_chans", "img_channel", "inp_channels"), "{} colours"),
    (("upscale",), "x{}"),
)


def _renamed(state: Mapping[str, Tensor], rules: _Rules) -> State | None:
    """The state under the keys that the rules give it, or None where a key fits no rule."""
    compiled = [(re.compile(rf"(?:{pattern})(?=$|\.(?:weight|bias)$)"), name) for pattern, name in rules]
    renamed: State = {}
    for key, value in state.items():
        for pattern, name in compiled:
            match = pattern.match(key)
            if match:
                renamed[match.expand(name) + key[match.end() :]] = value
                break
        else:
            return None
    return renamed if len(renamed) == len(state) else None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})


def _inverse_edsr(state: Mapping[str, Tensor]) -> _Rules:
    return (
        ("conv_first", "head.0"),
        (r"body\.(\d+)\.conv1", r"body.\1.body.0"),
        (r"body\.(\d+)\.conv2", r"body.\1.body.2"),
        ("conv_after_body", f"body.{_count(state, 'body')}"),
        (r"upsample\.(\d+)", r"tail.0.\1"),
        ("conv_last", "tail.1"),
    )


def _inverse_rcan(state: Mapping[str, Tensor]) -> _Rules:
    blocks = _count(state, "body.0.residual_group")
    return (
        ("conv_first", "head.0"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.(0|2)", r"body.\1.body.\2.body.\3"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1", r"body.\1.body.\2.body.3.conv_du.0"),
        (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3", r"body.\1.body.\2.body.3.conv_du.2"),
        (r"body\.(\d+)\.conv", rf"body.\1.body.{blocks}"),
        ("conv_after_body", f"body.{_count(state, 'body')}"),
        (r"upsample\.(\d+)", r"tail.0.\1"),
        ("conv_last", "tail.1"),
    )


def _read_edsr(state: State) -> Recognised:
    width = state["conv_first.weight"].shape[0]
    # The published networks of 256 channels have 0.1, those of 64 channels 1.
    res_scale = 0.1 if width >= 256 else 1.0
    options = {**_trunk("EDSR", state), "num_block": _count(state, "body"), "res_scale": res_scale}
    return _found(options, state, f"res_scale {res_scale:g}")


def _read_rcan(state: State) -> Recognised:
    squeezed = state["body.0.residual_group.0.rcab.3.attention.1.weight"].shape[0]
    options = {
        **_trunk("RCAN", state),
        "num_group": _count(state, "body"),
        "num_block": _count(state, "body.0.residual_group"),
        "squeeze_factor": state["conv_first.weight"].shape[0] // squeezed,
    }
    return _found(options, state, "res_scale 1")


def _read_msrresnet(state: State) -> Recognised:
    step = math.isqrt(state["upconv1.weight"].shape[0] // state["upconv1.weight"].shape[1])
    options = {**_trunk("MSRResNet", state), "num_block": _count(state, "body")}
    return _found({**options, "upscale": step**2 if "upconv2.weight" in state else step}, state)


def _read_swinir(state: State) -> Recognised:
    block = "layers.0.residual_group.blocks.0"
    width, colours = state["conv_first.weight"].shape[:2]
    window = (math.isqrt(state[f"{block}.attn.relative_position_bias_table"].shape[0]) + 1) // 2
    groups = range(_count(state, "layers"))
    upsampler, scale = _swinir_upsampling(state, colours)
    img_range = 255.0 if window == 7 and not upsampler else 1.0
    options = {
        "type": "SwinIR",
        "img_size": _swinir_size(state, window),
        "in_chans": colours,
        "embed_dim": width,
        "depths": tuple(_count(state, f"layers.{group}.residual_group.blocks") for group in groups),
        "num_heads": tuple(_swinir_heads(state, group) for group in groups),
        "window_size": window,
        "mlp_ratio": _ratio(state[f"{block}.mlp.fc1.weight"].shape[0], width),
        "qkv_bias": f"{block}.attn.qkv.bias" in state,
        "ape": "absolute_pos_embed" in state,
        "patch_norm": "patch_embed.norm.weight" in state,
        "upscale": scale,
        "img_range": img_range,
        "upsampler": upsampler,
        "resi_connection": "1conv" if "conv_after_body.weight" in state else "3conv",
    }
    return _found(options, state, f"img_range {img_range:g}")


def _swinir_upsampling(state: State, colours: int) -> tuple[str, int]:
    if "conv_up1.weight" in state:
        return "nearest+conv", 4 if "conv_up2.weight" in state else 2
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle", _upsampling(state)
    if "upsample.0.weight" in state:
        return "pixelshuffledirect", math.isqrt(state["upsample.0.weight"].shape[0] // colours)
    return "", 1


def _swinir_size(state: State, window: int) -> int:
    """The img_size that masks or position embeddings were saved for; where windows were not shifted, the window's."""
    if "absolute_pos_embed" in state:
        return math.isqrt(state["absolute_pos_embed"].shape[1])
    masks = [value for key, value in state.items() if key.endswith(".attn_mask")]
    if masks:
        return math.isqrt(masks[0].shape[0]) * window
    # A file that says where pixels lie but has no masks had none; one that has neither was stripped of both.
    return window if any(key.endswith(".relative_position_index") for key in state) else 8 * window


def _swinir_heads(state: State, group: int) -> int:
    return state[f"layers.{group}.residual_group.blocks.0.attn.relative_position_bias_table"].shape[1]


def _ratio(hidden: int, width: int) -> float:
    """A ratio for which int(width * ratio) is `hidden`, whatever the rounding."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _trunk(architecture: str, state: State) -> dict[str, Any]:
    first, last = state["conv_first.weight"], state["conv_last.weight"]
    options = {"type": architecture, "num_in_ch": first.shape[1], "num_out_ch": last.shape[0]}
    return {**options, "num_feat": first.shape[0], "upscale": _upsampling(state)}


def _upsampling(state: State) -> int:
    steps = [value.shape for key, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in steps)


def _same_size(options: Callable[[State], dict[str, Any]]) -> Callable[[State], Recognised]:
    """For networks that do not enlarge, and whose shapes show all there is to know."""

    def reading(state: State) -> Recognised:
        found = options(state)
        return Recognised(found["type"], "", found, 1, state)

    return reading


def _found(options: dict[str, Any], state: State, *assumed: str) -> Recognised:
    return Recognised(options["type"], "", options, options["upscale"], state, assumed)


def _with_usual_range(read: Callable[[State], Recognised]) -> Callable[[State], Recognised]:
    """For layouts whose range and mean colour are options: those that BasicSR's networks were published with."""

    def reading(state: State) -> Recognised:
        found = read(state)
        colours = found.options["num_in_ch"]
        mean = {} if colours == 3 else {"rgb_mean": (0.0,) * colours}
        said = "the mean colour of DIV2K" if colours == 3 else "no mean colour"
        return replace(found, options={**found.options, **mean}, assumed=(*found.assumed, "img_range 255", said))

    return reading


def _with_mean_shift_read(read: Callable[[State], Recognised]) -> Callable[[State], Recognised]:
    """For layouts whose range and mean colour are in their mean shifts."""

    def reading(state: State) -> Recognised:
        without, img_range, rgb_mean, note = without_mean_shift(state)
        found = read(without)
        options = {**found.options, "img_range": img_range, "rgb_mean": rgb_mean}
        return replace(found, options=options, notes=(note,) if note else (), has_range="sub_mean.weight" in state)

    return reading


@dataclass(frozen=True)
class _Layout:
    """Keys of a layout and how they become ours; `needed` are keys of ours, `read` finds the hyperparameters."""

    name: str
    rules: _Rules
    needed: tuple[str, ...]
    read: Callable[[State], Recognised]


_ENDS = ("conv_first.weight", "conv_last.weight")
_NEEDED_EDSR = (*_ENDS, "body.0.conv1.weight", "conv_after_body.weight")
_NEEDED_RCAN = (*_ENDS, "body.0.residual_group.0.rcab.3.attention.1.weight", "conv_after_body.weight")
_NEEDED_MSRRESNET = (*_ENDS, "body.0.conv1.weight", "upconv1.weight", "conv_hr.weight")
_NEEDED_SWINIR = ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight")

_LAYOUTS = (
    _Layout("BasicSR", _EDSR, _NEEDED_EDSR, _with_usual_range(_read_edsr)),
    _Layout("EDSR-PyTorch", _EDSR_PYTORCH, _NEEDED_EDSR, _with_mean_shift_read(_read_edsr)),
    _Layout("BasicSR", _RCAN, _NEEDED_RCAN, _with_usual_range(_read_rcan)),
    _Layout("RCAN's original", _RCAN_ORIGINAL, _NEEDED_RCAN, _with_mean_shift_read(_read_rcan)),
    _Layout("BasicSR", _MSRRESNET, _NEEDED_MSRRESNET, _read_msrresnet),
    _Layout("ESRGAN and KAIR", _MSRRESNET_ESRGAN, _NEEDED_MSRRESNET, _read_msrresnet),
    _Layout("SwinIR's original", _SWINIR, _NEEDED_SWINIR, _read_swinir),
    _Layout("BasicSR", NAFNET_RULES, NAFNET_NEEDED, _same_size(nafnet_options)),
    _Layout("BasicSR", RESTORMER_RULES, RESTORMER_NEEDED, _same_size(restormer_options)),
)

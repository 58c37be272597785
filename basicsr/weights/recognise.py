"""Networks from weights alone: which one a file holds is recognised from its keys and shapes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from basicsr.archs import build_network
from basicsr.archs.recognition import Recognised, UnsupportedWeights
from basicsr.archs.swinir_layout import SHIFTED_WINDOWS
from basicsr.files.torch_files import check_weights
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import ARCH_REGISTRY, find_problems
from basicsr.utils.reparameterization import convolutions
from basicsr.weights.image_ranges import with_tried_range
from basicsr.weights.layouts import recognise
from basicsr.weights.loading import (
    TwoNetworks,
    WeightFile,
    hidden_options,
    inner_states,
    load_network,
    load_state,
    quantize_like,
    read_weights,
)
from basicsr.weights.spandrel_networks import NotRecognised, SpandrelNetwork

# Whose keys are ours.
_OUR_LAYOUTS = ("", "BasicSR", "SwinIR's original")
_HIDDEN = ("type", "noise_level")


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights, with fake quantisers if the file has them, and what is known of it.

    Attributes:
        network: in eval mode, float32, on the CPU; maps (B, C, H, W) in [0, 1] to (B, C, sH, sW), see `only_size`.
        block: options from which `build_network` builds it; None where it is spandrel's own module.
        architecture: 'EDSR', 'RCAN', 'SwinIR'..., or spandrel's name for it.
        layout: whose keys the file has: 'ours', 'BasicSR', 'EDSR-PyTorch', "RCAN's original", 'spandrel'...
        scale: factor of enlargement.
        in_channels, out_channels: colours of the input and the output.
        weights: the name under which the weights lie in the file, such as 'params_ema'; None at its top.
        metadata: as of `WeightFile`.
        remark: what was taken for granted, in one line, or None.
        scales: where the weights are for several scales, all of them; `scale` is the one chosen, else the smallest.
        assumed: what of the network the file does not show, and was taken as published; in words.
    """

    network: nn.Module
    block: Mapping[str, Any] | None
    architecture: str
    layout: str
    scale: int
    in_channels: int
    out_channels: int
    weights: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    remark: str | None = None
    scales: tuple[int, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def only_size(self) -> tuple[int, int] | None:
        """The one height and width that a SwinIR with an absolute position embedding takes; None for all others."""
        embedded = getattr(self.network, "absolute_pos_embed", None) is not None
        return getattr(self.network, "resolution", None) if embedded else None


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    param_key: str | None = None,
    only_this: bool = False,
    scale: int | None = None,
) -> Pretrained:
    """Builds and loads a file's network: by its recorded options, by keys and shapes, or by spandrel.

    Args:
        path: file of torch.save or safetensors.
        param_key: which of several state dicts to take; None prefers `params_ema`, then `params`.
        only_this: refuse a file without `param_key` instead of taking others of its weights.
        scale: which one to take of a file that serves several scales; None takes the smallest.

    Raises:
        CheckpointError: the file cannot be read, or holds no network that is recognised.
    """
    file = read_weights(path, param_key, only_this=only_this)
    reasons: list[str] = []
    for candidate in _candidates(path, file, reasons, scale):
        block, options = candidate.block, candidate.options
        try:
            network = build_network(block)
            load_state(network, file.state, path)
        except TwoNetworks:
            raise
        except Exception as error:  # options of unknown origin; constructors stumble over them in any way
            reasons.append((str(error) or type(error).__name__).splitlines()[0])
            continue
        quantized = quantize_like(network, file, path)
        # Colours as the options name them, else those of the outermost convolutions.
        outer = [module for _, module in convolutions(network)]
        first, last = (outer[0].in_channels, outer[-1].out_channels) if outer else (3, 3)
        both = options.get("in_chans", options.get("img_channel"))
        colours = options.get("num_in_ch", both or first), options.get("num_out_ch", both or last)
        found = network.eval(), dict(block), str(block["type"]), candidate.layout, candidate.scale, *colours
        remark = "; ".join(filter(None, (candidate.remark, *quantized))) or None
        return Pretrained(*found, file.key, file.metadata, remark, candidate.scales, candidate.assumed)
    if file.quantization is None and (pretrained := _by_spandrel(path, file, reasons)):
        return pretrained
    if Path(path).name.startswith("net_d"):
        raise CheckpointError(f"checkpoint {path} is a discriminator by its name; give the network, net_g_*.pth")
    raise CheckpointError(_not_recognised(path, file, reasons))


def _not_recognised(path: str | os.PathLike[str], file: WeightFile, reasons: list[str]) -> str:
    """What was found and tried, and the way that is left: the network's own code."""
    keys = list(file.state)
    where = f"under '{file.key}'" if file.key else "at its top"
    others = f"; it has further tensors under {', '.join(map(repr, file.others))}" if file.others else ""
    return (
        f"checkpoint {path} holds no network that is recognised ({'; '.join(dict.fromkeys(reasons))}); its {len(keys)}"
        f" weights {where} begin with {', '.join(keys[:3])}{others}. Use its authors' code as an architecture file"
        " (docs/adding_a_network.md); docs/pretrained.md says what is recognised"
    )


def recognised_block(
    path: str | os.PathLike[str], *, param_key: str | None, scale: int
) -> tuple[dict[str, Any] | None, str | None]:
    """The options of our network that a file holds, without building it, and a remark; raises if the scale is wrong."""
    for candidate in _candidates(path, read_weights(path, param_key), [], scale):
        _check_scale(candidate.block["type"], candidate.scales or candidate.scale, scale, path)
        return dict(candidate.block), candidate.remark
    return None, None


def network_for(
    block: Mapping[str, Any] | None,
    path: str | os.PathLike[str],
    *,
    param_key: str | None = "params",
    strict: bool = True,
    scale: int | None = None,
) -> tuple[nn.Module, str | None]:
    """Builds the network that `block` describes and loads its weights; None or {type: auto} recognises it.

    Returns the network, in eval mode where it was recognised, and a remark in one line or None. `scale` is what a
    recognised network's scale must be. Raises OptionsError or CheckpointError where `block` or the file does not fit.
    """
    if block is None or block.get("type") == "auto":
        pretrained = load_pretrained(path, param_key=param_key, scale=scale)
        if scale is not None:
            _check_scale(pretrained.architecture, pretrained.scales or pretrained.scale, scale, path)
        elif pretrained.scales:
            what = f"{pretrained.architecture} for {scales_text(pretrained.scales)}"
            raise OptionsError(
                f"checkpoint {path} is {what}: describe the network with its `upscale` in place of `type: auto`"
            )
        return pretrained.network, pretrained.remark
    network = build_network(block)
    return network, load_network(network, path, param_key=param_key, strict=strict, options=block)


def scales_text(scales: Sequence[int]) -> str:
    """Such as 'x2, x3, x4'."""
    return ", ".join(f"x{scale}" for scale in scales)


def check_scale(pretrained: Pretrained, path: str | os.PathLike[str], scale: int | None) -> None:
    """For commands: raises OptionsError where `--scale` (None: not given) is no scale of the network, or is needed."""
    name, scales = pretrained.architecture, pretrained.scales or (pretrained.scale,)
    if scale is None and pretrained.scales:
        raise OptionsError(f"{path} is {name} for {scales_text(scales)}; choose one by --scale")
    if scale not in (None, *scales):
        remedy = "give --scale for one of these" if pretrained.scales else "leave --scale out"
        what = f"{path} is {name} for {scales_text(scales)}"
        raise OptionsError(f"--scale {scale}, but {what}; {remedy} or give a checkpoint for x{scale}")


def _check_scale(name: str, found: int | tuple[int, ...], scale: int, path: str | os.PathLike[str]) -> None:
    scales = (found,) if isinstance(found, int) else found
    if scale not in scales:
        choice = f"set scale to {', '.join(map(str, scales[:-1]))}{' or ' if scales[1:] else ''}{scales[-1]}"
        raise CheckpointError(
            f"checkpoint {path} has the wrong scale: it is {name} for {scales_text(scales)}, the options' scale is"
            f" {scale}; give the file for x{scale}, or {choice}"
        )


class _Candidate(NamedTuple):
    """One of our networks that a file may hold."""

    block: Mapping[str, Any]
    options: Mapping[str, Any]  # of `block`, and those that shapes show
    layout: str
    scale: int
    remark: str | None
    scales: tuple[int, ...] = ()
    assumed: tuple[str, ...] = ()


def _candidates(
    path: str | os.PathLike[str], file: WeightFile, reasons: list[str], wanted: int | None
) -> Iterator[_Candidate]:
    """Networks that the file may hold: by the options recorded in it, then by keys and shapes; for x`wanted`."""
    found: Recognised | None = None
    for state in inner_states(file.state):
        try:
            found = found or recognise(state)
        except UnsupportedWeights as error:
            reasons.append(str(error))
    layout = found.layout if found is not None else ""
    shown = found.options if found is not None else {}
    recorded = file.network
    if recorded is not None and recorded["type"] in ARCH_REGISTRY:
        factory = ARCH_REGISTRY.get(recorded["type"])
        # Our training records the scale as well.
        keeps_scale = "scale" in inspect.signature(factory).parameters
        block = {key: value for key, value in recorded.items() if key != "scale" or keeps_scale}
        # Data of unknown origin, so nothing larger than the weights is built.
        own = found.at(block.get("upscale")) if found is not None else None
        fits = _agree(block, own) if own is not None else _bounded(block, file.state)
        scale = own.scale if own is not None else recorded.get("scale")
        arguments = {key: value for key, value in block.items() if key != "type"}
        if fits and isinstance(scale, int) and scale >= 1 and not find_problems(factory, arguments, {}):
            theirs = "ours" if layout in _OUR_LAYOUTS else layout
            yield _Candidate(block, {**shown, **block}, theirs, scale, file.remark)
    if found is not None:
        found = with_tried_range(found.at(wanted))
        remark = f"{path}: recognised {found}" + ("" if layout in _OUR_LAYOUTS else f" (layout: {layout})")
        if found.scales:
            remark += f", of {scales_text(found.scales)} that its weights are for"
        remark += "".join(f"; {note}" for note in found.notes)
        if found.assumed:
            remark += f"; not in the weights, taken as published: {', '.join(found.assumed)}"
        said = _with_doubts(path, file, remark)
        yield _Candidate(found.options, shown, layout, found.scale, said, found.scales, found.assumed)


def _with_doubts(path: str | os.PathLike[str], file: WeightFile, remark: str) -> str:
    """The remark behind those on the file; the options recorded in it were of no use."""
    doubt = None
    if file.network is not None and file.network["type"] in ARCH_REGISTRY:
        doubt = f"{path}: the options in it ({file.network['type']}) do not fit its weights, so left aside"
    average = next((name for name in file.others if name != file.key and "ema" in name.lower()), None)
    other = f"it also has the weights '{average}', often the better ones: param_key chooses" if average else None
    return "; ".join(filter(None, (file.remark, doubt, remark, other)))


def _by_spandrel(path: str | os.PathLike[str], file: WeightFile, reasons: list[str]) -> Pretrained | None:
    """By keys and shapes, as one of spandrel's networks."""
    for state in inner_states(file.state):
        try:
            network = SpandrelNetwork(state)
        except NotRecognised as error:
            reasons.append(str(error))
            continue
        check_weights(state, path, network.model.state_dict())
        name, scale, colours = network.architecture, network.scale, (network.in_channels, network.out_channels)
        remark = f"{path}: recognised {name}, x{scale}, by spandrel; its modules lie under 'model.'"
        if network.assumed:
            remark += f"; not in the weights, taken as published: {', '.join(network.assumed)}"
        found = network.eval(), None, name, "spandrel", scale, *colours
        told = file.key, file.metadata, _with_doubts(path, file, remark)
        return Pretrained(*found, *told, assumed=network.assumed)
    return None


def _agree(block: Mapping[str, Any], found: Recognised) -> bool:
    """Whether options say of a network what its shapes show."""
    if block["type"] != found.architecture:
        return False
    parameters = inspect.signature(ARCH_REGISTRY.get(found.architecture)).parameters
    shown = dict(found.options)
    if SHIFTED_WINDOWS in found.assumed:  # the recorded size says whether they are
        shown.pop("img_size")
    unseen = {*_HIDDEN, *hidden_options(ARCH_REGISTRY.get(found.architecture))}
    shown = {key: value for key, value in shown.items() if key not in unseen}
    given = {key: block.get(key, parameters[key].default) for key in shown}
    try:
        return _comparable(given) == _comparable(shown)
    except (TypeError, ValueError, ArithmeticError):
        return False


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without what shapes do not show, and equal where they make equal networks."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "squeeze_factor" in values:
        values["squeeze_factor"] = values["num_feat"] // values["squeeze_factor"]
    if "ffn_expansion_factor" in values:
        # Shapes show the hidden width of each of the four levels, which many factors give.
        factor = float(values["dim"]) * float(values["ffn_expansion_factor"])
        values["ffn_expansion_factor"] = [int(factor * 2**level) for level in range(4)]
    for key in ("mid_channels", "num_atten"):
        if key in values:
            values[key] = values[key] or values["num_feat"]
    if "cat_channels" in values:
        values["cat_channels"] = values["cat_channels"] or values["feature_channels"]
    if "ffn_scale" in values:
        values["ffn_scale"] = int(values["num_feat"] * values["ffn_scale"])
    if "branches" in values:
        values["branches"] = set(values["branches"])
    if "expansion" in values:
        values["expansion"] = int(values["num_feat"] * values["expansion"])
    if "mlp_ratio" in values:
        values["mlp_ratio"] = int(values["embed_dim"] * values["mlp_ratio"])
        values["upscale"] = values["upscale"] if values["upsampler"] else 1
        values["upsampler"] = values["upsampler"] or ""
    if "img_size" in values:
        size = values["img_size"]
        values["img_size"] = size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size
    return values


def _bounded(value: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether no number in the options exceeds all sizes in the file; for networks whose shapes we cannot read."""
    limit = max(255, len(state), *(side for tensor in state.values() for side in tensor.shape))
    if isinstance(value, Mapping):
        return all(_bounded(entry, state) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) <= limit and all(_bounded(entry, state) for entry in value)
    return not isinstance(value, (int, float)) or abs(value) <= limit

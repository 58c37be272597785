"""Mean shifts, the 1x1 convolutions at both ends of published networks, and the img_range and rgb_mean of ours.

EDSR-PyTorch and those that build on it run networks on images in [0, 255] and subtract the mean colour by a
convolution. Ours have `img_range` and `rgb_mean` instead: f((x - rgb_mean) * img_range) / img_range + rgb_mean for x in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from basicsr.archs.recognition import State, UnsupportedWeights

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def with_mean_shift(state: State, img_range: float, rgb_mean: Sequence[float]) -> State:
    """Adds 1x1 convolutions that do what img_range and rgb_mean do, to a state with `head.0` and `tail.1`.

    The layouts have none for other than three colours; then img_range goes into the outer convolutions.
    """
    mean = torch.tensor(rgb_mean, dtype=torch.float64)
    colours = state["head.0.weight"].shape[1]
    if len(mean) != colours:
        raise UnsupportedWeights(f"rgb_mean has {len(mean)} entries for {colours} colours")
    if colours != 3:
        if mean.any():
            raise UnsupportedWeights(f"the layout has no mean colour for {colours} colours, this network has one")
        factors = {"head.0.weight": img_range, "tail.1.weight": 1 / img_range, "tail.1.bias": 1 / img_range}
        return {key: value * factors.get(key, 1) for key, value in state.items()}
    factor = img_range / 255
    unit = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    shifts = {
        "sub_mean.weight": unit * factor,
        "sub_mean.bias": -img_range * mean,
        "add_mean.weight": unit / factor,
        "add_mean.bias": 255 * mean,
    }
    return {**{key: value.float() for key, value in shifts.items()}, **state}


def without_mean_shift(
    state: Mapping[str, Tensor], first: str = "conv_first", last: str = "conv_last"
) -> tuple[State, float, tuple[float, ...], str]:
    """Turns `sub_mean` and `add_mean` into img_range and rgb_mean; returns a note on them, or ''.

    `first` and `last` are the convolutions beside them. What the two cannot say (a deviation, mixed colours, another
    mean at the end) goes into these. Raises UnsupportedWeights if a part is missing or they cannot be undone.
    """
    state = dict(state)
    keys = [f"{name}_mean.{kind}" for name in ("sub", "add") for kind in ("weight", "bias")]
    shifts = [state.pop(key).double() for key in keys if key in state]
    colours = state[f"{first}.weight"].shape[1]
    if not shifts:
        return state, 1.0, (0.0,) * colours, "it has no mean shift, so it takes images in [0, 1] as they are"
    if len(shifts) < len(keys):
        raise UnsupportedWeights("of sub_mean and add_mean only a part is there")
    mix_in, mix_out = (shifts[index].reshape(colours, colours) for index in (0, 2))
    if torch.linalg.matrix_rank(mix_in) < colours:
        raise UnsupportedWeights("its sub_mean drops a colour")
    mean = -torch.linalg.solve(mix_in, shifts[1])
    # The images' range: 255, or 1, or what makes their mean colour DIV2K's.
    img_range = 1.0 if mean.any() and mean.abs().max() <= 1 else 255.0
    if colours == 3:
        ratios = mean / torch.tensor(DIV2K_MEAN, dtype=torch.float64)
        if ratios[0] > 0 and _same(ratios, ratios.mean().expand(3)):
            img_range = round(ratios.mean().item(), 2)
    unit = torch.eye(colours)
    if not _same(mix_in, unit):
        weight = state[f"{first}.weight"]
        state[f"{first}.weight"] = torch.einsum("oihw,ic->ochw", weight.double(), mix_in).to(weight.dtype)
    if not (_same(mix_out, unit) and _same(shifts[3], mean)):
        weight, bias = state[f"{last}.weight"], state[f"{last}.bias"]
        state[f"{last}.weight"] = torch.einsum("co,oihw->cihw", mix_out, weight.double()).to(weight.dtype)
        state[f"{last}.bias"] = (mix_out @ bias.double() + shifts[3] - mean).to(bias.dtype)
    if _same(mean / img_range, torch.tensor(DIV2K_MEAN)[:colours]):
        return state, img_range, DIV2K_MEAN, "" if img_range == 255 else f"its images are in [0, {img_range:g}]"
    shown = ", ".join(f"{value / img_range:.4f}" for value in mean.tolist())
    return state, img_range, tuple((mean / img_range).tolist()), f"its mean colour is ({shown})"


def _same(first: Tensor, second: Tensor) -> bool:
    # Files keep seven digits.
    return first.shape == second.shape and torch.allclose(first.double(), second.double(), rtol=1e-5, atol=1e-7)

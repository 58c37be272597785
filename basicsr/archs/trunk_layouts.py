"""Published layouts of EDSR, RCAN and their kin: a head, a residual body, a tail, mean shifts at both ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from basicsr.archs.mean_shift import with_mean_shift, without_mean_shift
from basicsr.archs.recognition import (
    Recognised,
    State,
    UnsupportedWeights,
    first_fitting,
    numbered,
    renamed,
    upsampling_scale,
)

_NEEDED = ("conv_first.weight", "conv_last.weight", "conv_after_body.weight")


class TrunkLayout(NamedTuple):
    """Whose keys, as patterns for `renamed`; `img_range` is what was published, None where mean shifts say it."""

    patterns: Mapping[str, str]
    img_range: int | None = None


def shifted_layout(renames: Mapping[str, str]) -> TrunkLayout:
    """A layout with mean shifts, by keys without `.weight` and `.bias`, theirs and ours.

    `#` is a number that both have; `*` one that only they have, which counts on from the blocks before it.
    """
    return TrunkLayout(_patterns({"sub_mean": "sub_mean", "add_mean": "add_mean", **renames}))


def read_trunk(
    state: Mapping[str, Tensor],
    layouts: Mapping[str, TrunkLayout],
    needed: Sequence[str],
    read: Callable[[State], tuple[dict[str, Any], tuple[str, ...]]],
) -> Recognised | None:
    """A `ResidualTrunk` in the first layout that fits; `read` finds `type`, other options, and what it assumed."""
    fitting = first_fitting(state, {name: layout.patterns for name, layout in layouts.items()}, (*_NEEDED, *needed))
    if fitting is None:
        return None
    name, converted = fitting
    published_range = layouts[name].img_range
    notes: tuple[str, ...] = ()
    if published_range is None:
        converted, img_range, rgb_mean, note = without_mean_shift(converted)
        ranges: dict[str, Any] = {"img_range": img_range, "rgb_mean": rgb_mean}
        notes = (note,) if note else ()
    first, last = converted["conv_first.weight"], converted["conv_last.weight"]
    colours = first.shape[1]
    options, assumed = read(converted)
    if published_range is not None:
        ranges = {} if published_range == 255 else {"img_range": float(published_range)}
        ranges |= {} if colours == 3 else {"rgb_mean": (0.0,) * colours}
        usual = "the mean colour of DIV2K" if colours == 3 else "no mean colour"
        assumed = (*assumed, f"img_range {published_range}", usual)
    sizes = {"num_in_ch": colours, "num_out_ch": last.shape[0], "num_feat": first.shape[0]}
    options = {"type": options["type"], **sizes, "upscale": upsampling_scale(converted), **options, **ranges}
    has_range = "sub_mean.weight" in state
    return Recognised(options["type"], name, options, options["upscale"], converted, assumed, notes, has_range)


def to_shifted(
    name: str, renames: Mapping[str, str], state: Mapping[str, Tensor], img_range: float, rgb_mean: Sequence[float]
) -> State:
    """Weights of our network `name` under the keys of a `shifted_layout`; UnsupportedWeights for other weights."""
    theirs = renamed(state, _patterns({ours: theirs for theirs, ours in renames.items()}))
    if theirs is None:
        raise UnsupportedWeights(f"these are not the weights of our {name}")
    after = {key: numbered(theirs, key.split(".*")[0]) for key in theirs if "*" in key}
    counted = {key.replace("*", str(after.get(key))): value for key, value in theirs.items()}
    return with_mean_shift(counted, img_range, rgb_mean)


def _patterns(renames: Mapping[str, str]) -> dict[str, str]:
    """The same as regular expressions and templates."""
    numbers = {theirs: ours.replace("#", r"\1", 1).replace("#", r"\2") for theirs, ours in renames.items()}
    return {re.escape(key).replace(r"\#", r"(\d+)").replace(r"\*", r"\d+"): to for key, to in numbers.items()}

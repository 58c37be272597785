"""How a network says that a file's weights are its own: what is read from keys and shapes, and what was assumed.

A network that can be recognised from its weights has a static method `from_published(state) -> Recognised | None`. It
gets a state dict without prefixes such as `module.`, looks at keys and shapes alone, and builds nothing. It returns
None for weights of another network, and raises UnsupportedWeights for those of its own kind that it cannot hold. It
must not take another network's weights: tests hold each against the weights of all others. What it finds by a missing
key or an odd shape may end in KeyError, IndexError, ZeroDivisionError or RuntimeError: that is None as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


class UnsupportedWeights(Exception):
    """A known layout with content that our networks cannot have; the message says which."""


@dataclass(frozen=True)
class Recognised:
    """A state dict whose network is known.

    Attributes:
        architecture: name of the network in our registry.
        layout: whose keys the file has.
        options: block for `build_network`.
        scale: factor of enlargement; of several scales the smallest, which `options` has as well.
        state: the weights under our keys.
        assumed: what neither keys nor shapes show, and was taken as it was published; in words.
        notes: what else is worth saying, in words.
        has_range: whether img_range and rgb_mean were read from the file.
        scales: where one file is for several scales: all of them; `options['upscale']` chooses.
    """

    architecture: str
    layout: str
    options: dict[str, Any]
    scale: int
    state: State
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_range: bool = False
    scales: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.architecture} with {described(self.options)}"

    def at(self, scale: int | None) -> Recognised:
        """The same network for another of its `scales`; itself where there is no choice, or it is not among them."""
        if scale not in self.scales:
            return self
        return replace(self, scale=scale, options={**self.options, "upscale": scale})


_WORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("num_feat", "num_feats", "feature_channels", "embed_dim", "width", "dim"), "{} channels"),
    (("num_group",), "{} groups"),
    (("num_block", "depths", "num_blocks"), "{} blocks"),
    (("num_conv",), "{} convolutions"),
    (("num_layer",), "{} layers"),
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


def described(options: Mapping[str, Any]) -> str:
    """The hyperparameters that people compare networks by, in words: '64 channels, 16 blocks, x2'."""
    words = []
    for names, text in _WORDS:
        value = next((options[name] for name in names if name in options), None)
        if value is not None:
            words.append(text.format("+".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return ", ".join(words)


def numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix.` in the keys: the blocks of a list called `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})


def shuffled_scale(outputs: int, inputs: int) -> int:
    """The factor of a pixel shuffle after a convolution whose `outputs` become `inputs` channels; 0 where none fits."""
    factor = math.isqrt(outputs // inputs)
    return factor if inputs * factor**2 == outputs else 0


def renamed(state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> State | None:
    """The state under the keys that the patterns give it, or None where a key fits no pattern.

    `patterns` are regular expressions of whole keys without `.weight` and `.bias`, and templates of the new ones.
    """
    compiled = [(re.compile(rf"(?:{pattern})(?=$|\.(?:weight|bias)$)"), name) for pattern, name in patterns.items()]
    result: State = {}
    for key, value in state.items():
        match, name = next(((match, name) for pattern, name in compiled if (match := pattern.match(key))), (None, ""))
        if match is None:
            return None
        result[match.expand(name) + key[match.end() :]] = value
    return result if len(result) == len(state) else None


def ours(*patterns: str) -> dict[str, str]:
    """For `renamed`: keys that stay as they are."""
    return dict.fromkeys(patterns, r"\g<0>")


def first_fitting(
    state: Mapping[str, Tensor], layouts: Mapping[str, Mapping[str, str]], needed: tuple[str, ...]
) -> tuple[str, State] | None:
    """The first of the layouts, patterns for `renamed` by name, that has all keys; and the state under our keys.

    `needed` are keys of ours that must be there. None where no layout fits.
    """
    for layout, patterns in layouts.items():
        converted = renamed(state, patterns)
        if converted is not None and all(key in converted for key in needed):
            return layout, converted
    return None


def upsampling_scale(state: Mapping[str, Tensor], prefix: str = "upsample") -> int:
    """The factor of convolutions and pixel shuffles in a sequence called `prefix`."""
    pattern = re.compile(rf"{re.escape(prefix)}\.\d+\.weight")
    steps = [value.shape for key, value in state.items() if pattern.fullmatch(key)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in steps)


def weights_of(*modules: str, bias: bool = True) -> frozenset[str]:
    """The keys of modules that have a weight and a bias."""
    return frozenset(f"{module}.{kind}" for module in modules for kind in (("weight", "bias") if bias else ("weight",)))


def equal_blocks(state: Mapping[str, Tensor], prefix: str, of_block: frozenset[str], others: frozenset[str]) -> int:
    """How many blocks a network has whose keys are exactly `others` and, behind `prefix` and a number, `of_block`.

    Numbers count from 0 or from 1 without gaps; 0 for other keys.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(match[1]) for key in state if (match := pattern.match(key))}
    blocks = {f"{prefix}{number}.{key}" for number in numbers for key in of_block}
    whole = numbers and max(numbers) - min(numbers) < len(numbers) and min(numbers) <= 1
    return len(numbers) if whole and state.keys() == blocks | others else 0

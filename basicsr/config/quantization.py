"""How a network is quantised: the options block that training, `scripts/quantize.py` and checkpoints share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from basicsr.config.component_blocks import EMPTY, Named, Section
from basicsr.utils.ranges import Few

Activations = Literal["int8", "int16", "float"]
"""A layer's inputs and outputs; its weights are of 7 or 8 bits, and in float with 'float'."""
Ranges = Literal["minmax", "percentile", "mse"]
LayerPattern = Annotated[str, Field(min_length=1, max_length=200)]


class QuantizationSettings(Section):
    """What is quantised and how; `layers` overrules `first` and `last`, these overrule `activations`."""

    weight_bits: Literal[7, 8] = Field(
        default=7,
        description="bits of weights, in int8 either way; 7 never overflow on CPUs without VNNI (reduce_range), 8 do",
    )
    activations: Activations = Field(
        default="int8", description="inputs and outputs of layers; float leaves layers as they are, weights too"
    )
    first: Activations | None = Field(default=None, description="of layers on the image; ~: as activations says")
    last: Activations | None = Field(default=None, description="of layers that make the image; ~: as activations says")
    layers: Named[Activations] = Field(
        default=EMPTY, description="int8, int16 or float by pattern of layers' names, such as body.0.*; the last holds"
    )
    ranges: Ranges = Field(
        default="mse",
        description="of activations: the least squared error, smallest and largest value, or the inner 99.99 %",
    )
    images: Few = Field(default=32, description="images for calibration")

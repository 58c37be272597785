"""What parts of a network decide which programs for devices can run it; a network states them as `traits`."""

from __future__ import annotations

from typing import Literal

Trait = Literal[
    "attention in windows",  # tokens cut from the image by reshapes to six axes, masks, layer norm
    "attention between channels",  # normalised queries and keys along the pixels
    "bicubic enlargement inside",  # rows and columns mirrored around the image
    "folding by strides",  # 2x2 pixels to channels, of any sides
    "a channel of the noise level",  # as large as the image
    "pooling into parts of the image",  # of sizes that depend on the image's, as adaptive pooling
    "resizing to the image's size",  # features from lower resolutions, bilinear or nearest
    "sides extended to multiples",  # by reflection, as far as it takes
    "layer norm over channels",
    "bilinear enlargement",  # by a factor
    "channels cut apart",  # slices of the features
]
"""In words that complete 'the network has ...'; a network without any is made of convolutions and pixel shuffles."""

"""Ranges of numbers in options: each stated once, for the check of options, the constructors and options/schema.json.

The upper ends are far beyond what anybody trains with. They are there for a slip of the keyboard, such as `num_block:
1e9`, which would otherwise end in no answer or without memory.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

LARGEST_ITERATION = 10**9
LARGEST_SCALE = 64

Iterations = Annotated[int, Ge(1), Le(LARGEST_ITERATION)]
Interval = Annotated[int, Ge(1), Le(10**12)]
"""Iterations from one event to the next; some write a very large number for never."""
IterationsOrNone = Annotated[int, Ge(0), Le(LARGEST_ITERATION)]
Scale = Annotated[int, Ge(1), Le(LARGEST_SCALE)]
BatchSize = Annotated[int, Ge(1), Le(16384)]
Side = Annotated[int, Ge(1), Le(16384)]
"""Height or width in pixels."""
PatchSide = Annotated[int, Ge(1), Le(1024)]
Position = Annotated[int, Ge(0), Le(1_000_000)]
"""Row or column of a pixel."""
Border = Annotated[int, Ge(0), Le(1024)]
"""Pixels left out, or added, at each edge."""
Few = Annotated[int, Ge(1), Le(1024)]
"""A number of things that each cost time or memory: crops, negatives, positions, processes."""
Many = Annotated[int, Ge(1), Le(65536)]
FewOrNone = Annotated[int, Ge(0), Le(1024)]

ImageChannels = Annotated[int, Ge(1), Le(64)]
Features = Annotated[int, Ge(1), Le(2048)]
Blocks = Annotated[int, Ge(1), Le(1000)]
BlocksOrNone = Annotated[int, Ge(0), Le(1000)]
Layers = Annotated[int, Ge(3), Le(1000)]
"""Convolutions in all of a plain stack: the first, the last, and at least one between them."""
Levels = Annotated[int, Ge(1), Le(8)]
"""A number of halvings."""
Heads = Annotated[int, Ge(1), Le(128)]
Window = Annotated[int, Ge(1), Le(64)]
Ratio = Annotated[float, Gt(0), Le(16)]
"""Hidden channels to channels."""
Factor = Annotated[float, Gt(0), Le(1000)]
ImageRange = Annotated[float, Gt(0), Le(65535)]
Colour = Annotated[float, Ge(0), Le(1)]
"""A colour of images in [0, 1]."""
NoiseLevel = Annotated[float, Ge(0), Le(255)]
"""A standard deviation of noise, of images in [0, 255]."""
Deviation = Annotated[float, Gt(0), Le(10)]
"""A standard deviation of images in [0, 1]."""
PoissonLevel = Annotated[float, Ge(0), Le(100)]
Quality = Annotated[float, Ge(1), Le(100)]
"""Of JPEG compression."""
Spread = Annotated[float, Gt(0), Le(100)]
"""A standard deviation of a blur in pixels, or the exponent of its shape."""
KernelSide = Annotated[int, Ge(3), Le(63)]
ResizeFactor = Annotated[float, Gt(0), Le(16)]
ShrinkFactor = Annotated[float, Ge(1), Le(64)]

Weight = Annotated[float, Ge(0), Le(1e6)]
PositiveWeight = Annotated[float, Gt(0), Le(1e6)]
WeightDecay = Annotated[float, Ge(0), Le(100)]
Probability = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
"""A decay, or a probability that must leave something."""
Small = Annotated[float, Gt(0), Le(1)]
SmallOrNone = Annotated[float, Ge(0), Le(1)]
Label = Annotated[float, Ge(-10), Le(10)]
"""What a discriminator is to answer, or one end of what an encoder takes."""

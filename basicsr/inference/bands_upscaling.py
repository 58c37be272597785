"""Upscaling images of several bands, in their format, by a network of as many channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from basicsr.files.band_files import bands_from_bytes, encode_bands
from basicsr.files.images import to_float32
from basicsr.files.regular_files import read_regular
from basicsr.inference.pictures import write
from basicsr.inference.upscaling import Run
from basicsr.utils.errors import DataError


def upscale_bands(name: str, target: Path, run: Run, channels: int) -> tuple[str, str, tuple[str, ...]]:
    """Upscales one file of `channels` bands; the result has its type of values, and the format that `target` names.

    Returns the sizes before and after, `WIDTHxHEIGHT`, and no notes. Raises OutputError if the result cannot be
    written, DataError if this file cannot be upscaled.
    """
    try:
        pixels = bands_from_bytes(read_regular(name), channels, name)
        lq = torch.from_numpy(np.ascontiguousarray(np.moveaxis(to_float32(pixels), -1, 0)))[None]
        large = run(lq, pixels.dtype)
        content = encode_bands(large, target.suffix)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}; check the path") from error
    except MemoryError as error:
        raise DataError(f"{name}: there is not enough memory for it; cut it into parts") from error
    write(content, target)
    before, after = (f"{image.shape[1]}x{image.shape[0]}" for image in (pixels, large))
    return before, after, ()

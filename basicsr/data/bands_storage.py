"""Folders of images of several bands: `io_backend: {type: bands, channels: N}`."""
# ruff: noqa: D102 (ImageRoot says what the methods do)

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from basicsr.data.storage import ImageRoot, disk
from basicsr.files.band_files import (
    BAND_SUFFIXES,
    FEWEST_BANDS,
    MOST_BANDS,
    bands_from_bytes,
    find_band_fault,
    read_band_header,
)
from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.files.image_headers import MOST_PIXELS, ImageHeader, Source
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import STORAGE_REGISTRY

Bands = Annotated[int, Ge(FEWEST_BANDS), Le(MOST_BANDS)]


@dataclass(frozen=True)
class BandFolder(ImageRoot):
    """A folder of TIFF files and arrays whose channels are no colours (`basicsr/files/band_files.py`)."""

    bands: int = 4

    # Others are not passed over, but refused.
    suffixes: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *BAND_SUFFIXES)))

    @property
    def channels(self) -> int:
        return self.bands

    @property
    def kind(self) -> str:
        return f"bands{self.bands}"

    def form(self, name: str) -> tuple[str, np.dtype]:
        """The ending of an image's name, and the type of its values; raises DataError or OSError."""
        with self.opened(name) as source:
            header = self.header(source)
        depth = {8: np.uint8, 16: np.uint16}.get(header.depth, np.float32)
        return os.path.splitext(name)[1].lower(), np.dtype(depth)

    def header(self, source: Source) -> ImageHeader:
        return read_band_header(source, self.channels)

    def fault(self, header: ImageHeader, most_pixels: int = MOST_PIXELS) -> str | None:
        return find_band_fault(header, self.channels, most_pixels)

    def decoded(self, content: bytes, label: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
        return bands_from_bytes(content, self.channels, label, most_pixels)


@STORAGE_REGISTRY.register()
def bands(path: str, channels: Bands) -> ImageRoot:
    """For `io_backend: {type: bands, channels: N}`: images of N bands, 2 or 4 to 16, as they are stored.

    Raises OptionsError where N is 3, or `path` is a database.
    """
    if channels == 3:
        raise OptionsError("3 channels are colours, which are read as usual: io_backend: {type: disk}")
    disk(path)
    return BandFolder(path, channels)

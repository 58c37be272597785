"""Leaves that import no other package of basicsr.

The functions that BasicSR offers under `basicsr.utils` are found here as well; the file that defines one is
imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_DEFINED_IN = {
    "FileClient": "file_client",
    "bgr2ycbcr": "color_util",
    "crop_border": "img_util",
    "get_root_logger": "logger",
    "get_time_str": "misc",
    "imfrombytes": "img_util",
    "img2tensor": "img_util",
    "imwrite": "img_util",
    "rgb2ycbcr": "color_util",
    "rgb2ycbcr_pt": "color_util",
    "scandir": "misc",
    "set_random_seed": "misc",
    "sizeof_fmt": "misc",
    "tensor2img": "img_util",
    "ycbcr2rgb": "color_util",
}

__all__ = list(_DEFINED_IN)


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DEFINED_IN])

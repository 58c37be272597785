"""BasicSR's import paths of modules that lie elsewhere here, in one table: code written for BasicSR runs unchanged."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "basicsr.losses.loss_util": "basicsr.losses.basic_loss",
    "basicsr.utils.file_client": "basicsr.files.file_client",
    "basicsr.utils.img_util": "basicsr.files.images",
    "basicsr.utils.lmdb_util": "basicsr.files.lmdb_databases",
    "basicsr.utils.options": "basicsr.config.load",
}
"""BasicSR's module: ours. An import of the former gives the latter, the same object."""

NAMES = {
    "FileClient": "basicsr.files.file_client",
    "bgr2ycbcr": "basicsr.utils.color_util",
    "crop_border": "basicsr.files.images",
    "get_root_logger": "basicsr.utils.logger",
    "get_time_str": "basicsr.utils.misc",
    "imfrombytes": "basicsr.files.images",
    "img2tensor": "basicsr.files.images",
    "imwrite": "basicsr.files.images",
    "rgb2ycbcr": "basicsr.utils.color_util",
    "rgb2ycbcr_pt": "basicsr.utils.color_util",
    "scandir": "basicsr.utils.misc",
    "set_random_seed": "basicsr.utils.misc",
    "sizeof_fmt": "basicsr.utils.misc",
    "tensor2img": "basicsr.files.images",
    "ycbcr2rgb": "basicsr.utils.color_util",
}
"""What BasicSR offers in `basicsr.utils` itself: the module that defines it."""


class _Aliases(MetaPathFinder, Loader):
    """Puts our module into the place of the one that was asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MODULES[module.__name__])


def install() -> None:
    """Adds the table to Python's import system, after the finders of real files."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.append(_Aliases())

"""BasicSR's import paths: each gives the module that took its place."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import basicsr.utils
from basicsr.utils.aliases import MODULES, NAMES


@pytest.mark.parametrize("old, new", MODULES.items())
def test_a_module_of_basicsr_is_the_module_that_took_its_place(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)
    package, name = old.rsplit(".", 1)
    assert getattr(importlib.import_module(package), name) is sys.modules[new]
    assert sys.modules[new].__name__ == new and sys.modules[new].__spec__.name == new


@pytest.mark.parametrize("name, module", NAMES.items())
def test_a_name_of_basicsr_utils_is_what_its_module_defines(name, module):
    found = getattr(basicsr.utils, name)
    assert found is getattr(importlib.import_module(module), name) and found.__module__ == module


def test_an_alias_works_in_a_process_that_has_imported_nothing_and_imports_nothing_before_it_is_asked():
    code = (
        "import sys, basicsr; assert not [m for m in sys.modules if m.startswith('basicsr.') and"
        " m not in ('basicsr.utils', 'basicsr.utils.aliases')];"
        "from basicsr.utils.img_util import imwrite; from basicsr.utils import imwrite as same; assert imwrite is same"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_modules_that_do_not_exist_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"basicsr\.utils\.flow_util"):
        importlib.import_module("basicsr.utils.flow_util")

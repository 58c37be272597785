"""Registries and the check of options against constructors."""

from __future__ import annotations

import sys
from typing import Any, Literal

import pytest
from support.typed import type_mismatch

from basicsr.config.schema import FrozenMapping
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import Problem, Registry, bind_arguments, find_problems
from basicsr.utils.text import nearest


class Blur:
    """A component as the framework writes them."""

    def __init__(self, *, sigma: float, size: int = 3, mode: Literal["same", "valid"] = "same", scale: int = 1) -> None:
        self.arguments = (sigma, size, mode, scale)


class Legacy:
    """A component as BasicSR's datasets are: it takes its options whole."""

    def __init__(self, opt):
        self.opt = opt


def anything(image: Any, **settings: Any) -> dict[str, Any]:
    """A function that takes any keyword."""
    return {"image": image, **settings}


@pytest.fixture
def registry() -> Registry:
    registry = Registry("filter", "no_such_package")
    for member in (Blur, Legacy, anything):
        registry.register(member)
    return registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `plugins` of files that register themselves; returns a registry of it and its folder."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("plugin", "plugins", "_arch")
    monkeypatch.setitem(sys.modules, "plugin_registry", type(sys)("plugin_registry"))
    sys.modules["plugin_registry"].REGISTRY = registry
    yield registry, folder
    for name in [name for name in sys.modules if name.split(".")[0] == "plugins"]:
        del sys.modules[name]


def test_build_gives_the_keys_to_the_constructor(registry):
    assert registry.build({"type": "Blur", "sigma": 1, "mode": "valid"}).arguments == (1, 3, "valid", 1)


def test_build_provides_what_the_constructor_takes_and_options_win(registry):
    assert registry.build({"type": "Blur", "sigma": 1.5}, scale=4, phase="train").arguments == (1.5, 3, "same", 4)
    assert registry.build({"type": "Blur", "sigma": 1.5, "scale": 2}, scale=4).arguments == (1.5, 3, "same", 2)


def test_build_gives_basicsr_classes_mutable_options_of_their_own(registry):
    options = FrozenMapping({"type": "Legacy", "roots": ["a", {"b": 1}]})
    built = registry.build(options, phase="val")
    assert built.opt == {"type": "Legacy", "roots": ["a", {"b": 1}], "phase": "val"}
    built.opt.pop("type")
    built.opt["roots"].append("c")
    assert options == {"type": "Legacy", "roots": ("a", FrozenMapping({"b": 1}))}


def test_build_does_not_change_the_options(registry):
    options = {"type": "Blur", "sigma": 1}
    registry.build(options, scale=3)
    assert options == {"type": "Blur", "sigma": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a filter needs a 'type'; there are: Blur, Legacy, anything"),
        ({"type": "blur"}, r"no filter is called 'blur' \(did you mean 'Blur'\?\); there are: Blur, Legacy, anything"),
        ({"type": "Blur"}, "filter Blur: sigma: is required"),
        ({"type": "Blur", "sigma": 1, "sise": 5}, r"sise: unknown key \(did you mean 'size'\?\); allowed: sigma, size"),
        ({"type": "Blur", "sigma": "1"}, "sigma: input should be a valid number, got '1'"),
        ({"type": "Blur", "sigma": 1, "size": 2.5}, "size: input should be a valid integer, got 2.5"),
        ({"type": "Blur", "sigma": 1, "size": True}, "size: input should be a valid integer, got True"),
        ({"type": "Blur", "sigma": 1, "mode": "full"}, "mode: input should be 'same' or 'valid', got 'full'"),
    ],
)
def test_build_refuses_what_does_not_fit(registry, options, message):
    with pytest.raises(OptionsError, match=message):
        registry.build(options)


def test_all_problems_of_a_block_are_told_at_once():
    with pytest.raises(OptionsError) as caught:
        bind_arguments(Blur, {"size": "3", "zigma": 1}, {}, "filter Blur")
    assert all(f"{key}: " in str(caught.value) for key in ("size", "zigma", "sigma"))
    problems = find_problems(Blur, {"size": "3", "zigma": 1}, {})
    assert {problem.key for problem in problems} == {("size",), ("zigma",), ("sigma",)}


def test_functions_with_open_keywords_take_any_key():
    assert find_problems(anything, {"x": 1}, {"image": None}) == []
    assert find_problems(anything, {"x": 1}, {}) == [Problem(("image",), "is required")]


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (True, float, False),
        ("1", float, False),
        ([1, 2], tuple[int, ...], True),
        ((1, 2), list[int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, "a"], tuple[int, ...], False),
        ([[1], [2]], tuple[tuple[int, ...], ...], True),
        (FrozenMapping({"a": 1}), dict[str, float], True),
        (None, int | None, True),
        (None, int, False),
        ("anything", Any, True),
    ],
)
def test_types_are_strict_but_lists_tuples_and_whole_numbers_pass(value, hint, fits):
    assert (type_mismatch(value, hint) is None) is fits


def test_a_name_can_be_taken_only_once(registry):
    with pytest.raises(ValueError, match=r"filter 'Blur' of .* is already registered by"):
        registry.register(Blur)


def test_a_file_written_for_basicsr_is_found_by_name_on_first_use(package):
    registry, folder = package
    (folder / "mine_arch.py").write_text(
        "from plugin_registry import REGISTRY\n\n@REGISTRY.register()\nclass Mine:\n"
        "    def __init__(self, n=1):\n        self.n = n\n"
    )
    assert "plugins.mine_arch" not in sys.modules
    assert registry.build({"type": "Mine", "n": 4}).n == 4
    assert registry.names() == ["Mine"]


def test_files_that_do_not_define_the_name_are_not_imported(package):
    registry, folder = package
    body = "from plugin_registry import REGISTRY\n\n@REGISTRY.register()\nclass {}:\n    pass\n"
    (folder / "good_arch.py").write_text(body.format("Good"))
    (folder / "heavy_arch.py").write_text(body.format("Heavy") + "raise RuntimeError('imported')\n")
    (folder / "helper.py").write_text("raise RuntimeError('imported')\n")
    assert "Good" in registry
    assert "plugins.heavy_arch" not in sys.modules and "plugins.helper" not in sys.modules


def test_a_file_that_does_not_import_is_named(package):
    registry, folder = package
    (folder / "broken_arch.py").write_text("import a_package_nobody_has\n\nclass Broken:\n    pass\n")
    with pytest.raises(OptionsError, match=r"broken_arch\.py does not import: ModuleNotFoundError: No module named"):
        registry.get("Broken")
    (folder / "failing_arch.py").write_text("class Failing:\n    width = 1 / 0\n")
    with pytest.raises(OptionsError, match=r"failing_arch\.py does not import: ZeroDivisionError"):
        registry.get("Failing")


def test_code_of_others_finds_what_lies_beside_it(package):
    registry, folder = package
    (folder / "block_of_others.py").write_text("WIDTH = 7\n")
    (folder / "model_of_others").mkdir()
    (folder / "model_of_others" / "common.py").write_text("import block_of_others\n")
    (folder / "model_of_others" / "net.py").write_text(
        "from model_of_others import common\n\nclass Net:\n    def __init__(self, args):\n"
        "        self.width = common.block_of_others.WIDTH * args.scale\n"
    )
    (folder / "others_arch.py").write_text(
        "from argparse import Namespace\nfrom model_of_others.net import Net as Original\n"
        "from plugin_registry import REGISTRY\n\n@REGISTRY.register()\nclass Net(Original):\n"
        "    def __init__(self, *, upscale: int = 2):\n        super().__init__(Namespace(scale=upscale))\n"
    )
    before = list(sys.path)
    try:
        assert registry.build({"type": "Net", "upscale": 3}).width == 21
        assert sys.path == [*before, str(folder)]
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.endswith("_of_others") or "_of_others." in name]:
            del sys.modules[name]


def test_a_suffix_tells_members_of_one_name_apart():
    registry = Registry("filter", "no_such_package")
    registry.register(suffix="basicsr")(Blur)
    assert registry.names() == ["Blur_basicsr"]
    assert registry.get("Blur") is Blur


@pytest.mark.parametrize(
    ("name", "allowed", "hint"),
    [("edsr", ["EDSR", "RCAN"], " (did you mean 'EDSR'?)"), ("zzz", ["EDSR"], ""), ("x", [], "")],
)
def test_the_nearest_name_is_offered_only_if_it_is_near(name, allowed, hint):
    assert nearest(name, allowed) == hint

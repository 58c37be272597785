"""Whatever is given as options ends with options or with one line for each mistake: never otherwise, never late."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.config.load import load_options, load_test_options
from basicsr.config.yaml_files import Document, document_from_mapping, dump_yaml, load_yaml
from basicsr.config.yaml_reader import merge_entries
from basicsr.utils.errors import OptionsError

BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=60)
NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}
DATASET = {"type": "PairedImageDataset", "name": "d", "dataroot_gt": "gt", "dataroot_lq": "lq"}
TEST = {"name": "n", "scale": 2, "datasets": {"test": DATASET}, "networks": {"row": {"path": "n.pth"}}}

_TEXT = st.text(st.characters(codec=None), max_size=12)
_SIGNS = r"""a b name scale train : : : - ? [ ] { } , & * ! | > ' " % @ ` # ~ << _base_ &a *a !!int !!set !!binary
None 1 010 1e9 .nan 0x10 0o7 1_0 -0 --- ... %YAML %TAG \\"""
_PIECES = st.sampled_from(
    _SIGNS.split()
    + ["\n", "\n  ", "\r", "\r\n", "\t", " ", "\x85", "\u2028", "\ufeff", "\x00", "é", "\\ud800", "9" * 5000]
)
_YAML_LIKE = st.lists(_PIECES | _TEXT, max_size=25).map("".join)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | _TEXT | _PIECES
_KEYS = _TEXT.filter(lambda key: key != "_base_")
_NESTED = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=12
)


def refusal(error: BaseException) -> list[str]:
    """The lines of an error, each of which is one that can be printed."""
    lines = str(error).split("\n")
    assert all(line and line.isprintable() for line in lines), lines
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("options")


@BOUNDED
@given(text=_YAML_LIKE)
def test_any_text_is_options_or_refused(text, folder):
    file = folder / "any.yml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (load_yaml, lambda path: load_options(path, training=True), lambda path: load_test_options(path)):
        try:
            read(file)
        except OptionsError as error:
            assert all(str(file) in line for line in refusal(error))


@BOUNDED
@given(content=st.binary(max_size=60))
def test_any_bytes_are_options_or_refused(content, folder):
    file = folder / "bytes.yml"
    file.write_bytes(content)
    try:
        load_yaml(file)
    except OptionsError as error:
        assert len(refusal(error)) >= 1


@BOUNDED
@given(data=st.dictionaries(_KEYS, _NESTED, max_size=4).filter(bool))
def test_what_is_written_is_read_back_equal_whatever_it_is(data, folder):
    file = folder / "written.yml"
    file.write_text(dump_yaml(data), encoding="utf-8", newline="")
    document = load_yaml(file)
    assert document.data() == data
    assert document.problems == []


@BOUNDED
@given(
    overrides=st.lists(
        _YAML_LIKE
        | st.tuples(st.sampled_from(["name", "scale", "train:x", "datasets:test:name"]), _YAML_LIKE).map("=".join),
        max_size=3,
    )
)
def test_any_override_is_taken_or_refused(overrides):
    try:
        load_options(TEST, overrides=overrides, training=False, paths=False)
    except OptionsError as error:
        assert refusal(error)[0].startswith("the options: ")


def _typeless(children):
    return st.dictionaries(st.sampled_from("abcd"), children, max_size=3)


_TREES = _typeless(st.recursive(st.integers(0, 9) | st.none(), _typeless, max_leaves=8))


@BOUNDED
@given(first=_TREES, second=_TREES, third=_TREES)
def test_merging_files_is_associative_where_no_block_has_a_type(first, second, third):
    a, b, c = (document_from_mapping(data).root for data in (first, second, third))
    before = Document(a).data(), Document(b).data(), Document(c).data()
    left = Document(merge_entries(merge_entries(a, b), c)).data()
    # A value that is no mapping ends what is under it, so the order matters where one stands between two mappings.
    if not any(_is_cut(x, y, z) for x, y, z in [(first, second, third)]):
        assert left == Document(merge_entries(a, merge_entries(b, c))).data()
    assert Document(merge_entries(a, a)).data() == first
    assert (Document(a).data(), Document(b).data(), Document(c).data()) == before


def _is_cut(a, b, c) -> bool:
    """Whether, at some key, a value of `b` that is no mapping stands between mappings of `a` and `c`."""
    for key in set(a) & set(b) & set(c):
        inner = [part[key] for part in (a, b, c)]
        are_mappings = [isinstance(value, dict) for value in inner]
        if are_mappings == [True, False, True] or (all(are_mappings) and _is_cut(*inner)):
            return True
    return False


@pytest.mark.parametrize("before", ["", "[" * 60])
@pytest.mark.parametrize(
    "piece", ["[", "{", "- ", "? ", "-\n", "? a\n", "k: 1\n", "&a ", "*a,", "! x,", "a: b, ", "---\n"]
)
def test_a_megabyte_of_one_sign_is_refused_with_a_line(before, piece, tmp_path):
    file = tmp_path / "long.yml"
    file.write_text(before + piece * (990_000 // len(piece)))
    with pytest.raises(OptionsError) as caught:
        load_yaml(file)
    (line,) = refusal(caught.value)
    assert line.startswith(f"{file}:") and len(line) < 300


@pytest.mark.parametrize(
    "text",
    ["9" * 10_000, "-" + "9" * 99_000, "1" + "_000" * 2000, "!!float " + "1" * 5000, "1e400", "-1e400", str(2**63)],
)
def test_numbers_that_no_machine_holds_are_told(text, tmp_path):
    file = tmp_path / "number.yml"
    file.write_text(f"a: 1\nscale: {text}\n")
    (problem,) = load_yaml(file).problems
    assert str(problem).startswith(f"{file}:2: scale: {text.removeprefix('!!float ')[:20]}"[: len(str(file)) + 15])
    assert "too large" in problem.message and len(str(problem)) < 400
    with pytest.raises(OptionsError):
        load_options(file, training=True)


@pytest.mark.parametrize(("text", "value"), [("-0", 0), ("0x10", "0x10"), ("0o7", "0o7"), ("1_0", "1_0"), ("+1", 1)])
def test_other_ways_to_write_numbers(text, value, tmp_path):
    (tmp_path / "a.yml").write_text(f"a: {text}\n")
    assert load_yaml(tmp_path / "a.yml").data() == {"a": value}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a: 1\r\nb: 2\r\nc: 010\r\n", 3),
        (b"a: 1\rb: 2\rc: 010\r", 3),
        ("a: 'x\u2028y'\nb: \"p\u0085q\"\nc: 010\n".encode(), 3),
        ("a: x\u2029b: 2\nc: 010\n".encode(), 2),
        (b"\xef\xbb\xbfa: 1\n\nc: 010\n", 3),
        (b"%YAML 1.1\n---\na: &a-1_b 1\nc: 010\n", 4),
        (b"a: |\n  x\n  y\nc: 010\n", 4),
    ],
    ids=["CRLF", "CR", "LS and NEL", "PS", "BOM", "directive", "block"],
)
def test_lines_are_counted_as_editors_count_them(content, line, tmp_path):
    file = tmp_path / "a.yml"
    file.write_bytes(content)
    (problem,) = load_yaml(file).problems
    assert str(problem).startswith(f"{file}:{line}: c: 010 has a leading zero")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: 1\n".encode("utf-16"), ":1: is not text in UTF-8"),
        ("a: 1\nb: 2\n".encode("utf-16-le"), ":1: is not text in UTF-8: holds the control character U+0000"),
        (b"a: 1\r\nb: \x07\r\n", ":2: is not text in UTF-8: holds the control character U+0007"),
        (b"a: 1\nb: \xed\xa0\x80\n", ":2: is not text in UTF-8"),
        (b"a: &a [*a]\n", ":1: a[0][0]: is nested deeper than 64 levels"),
        (b"x: 1\na: &a {b: *a}\n", ":2: a.b.b: is nested deeper than 64 levels"),
        (b"a: &a {<<: *a}\n", ":1: a.<<.<<: is nested deeper"),
        (b"%TAG ! tag:x,2000:\n---\na: !y 1\n", ":3: a: tag tag:x,2000:y is not read"),
        (b"a: 1\n---\nb: 2\n", ":2: but found another document"),
        (b"a: !!omap [b: 1]\n", ":1: a: tag !!omap is not read"),
        (b"a: !!map 3\n", ":1: a: !!map is for lists or mappings"),
        (b"a: !!seq {b: 1}\n", ":1: a: tag !!seq is not read"),
    ],
)  # fmt: skip
def test_odd_files_are_refused_with_their_line(content, told, tmp_path):
    file = tmp_path / "a.yml"
    file.write_bytes(content)
    with pytest.raises(OptionsError) as caught:
        load_options(file, training=True)
    assert any(line.startswith(f"{file}{told}") for line in refusal(caught.value)), str(caught.value)


def test_a_base_is_a_file_that_can_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.yml").symlink_to("self.yml")
    (tmp_path / "loop").symlink_to("loop")
    for base, told in {
        "pipe": "it is no file but a pipe",
        "/dev/zero": "it is no file but a device",
        ".": "it is no file but a folder",
        "link.yml": "builds on itself through _base_",
        "loop": "Too many levels of symbolic links",
        "x" * 300: "File name too long",
        "a/" * 3000: "File name too long",
        "self.yml/a": "Not a directory",
        '"a\\0b"': "must be a path or a list of paths",
        '"~\\0"': "must be a path or a list of paths",
        '"\\ud800"': "must be a path or a list of paths",
    }.items():
        file = tmp_path / "self.yml"
        file.write_text(f"a: 1\n_base_: {base}\n")
        with pytest.raises(OptionsError) as caught:
            load_yaml(file)
        (line,) = refusal(caught.value)
        assert line.startswith(str(tmp_path)) and ":2: " in line and told in line, (base, line)


def test_bases_may_be_neither_long_chains_nor_nested_without_end(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.yml").write_text(f"_base_: {number + 1}.yml\n")
    with pytest.raises(OptionsError, match="leads through more than 20 files"):
        load_yaml(tmp_path / "0.yml")
    for number in range(15):
        inner = "a: {" * 30 + f"_base_: n{number + 1}.yml" + "}" * 30
        (tmp_path / f"n{number}.yml").write_text(inner)
    with pytest.raises(OptionsError, match="nested deeper than 64 levels"):
        load_yaml(tmp_path / "n0.yml")


def test_what_many_bases_hold_is_counted_together(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.yml").write_text(f"a{number}: 1\n" + "#" * 99_000)
    (tmp_path / "all.yml").write_text(f"_base_: [{', '.join(f'{number}.yml' for number in range(12))}]\n")
    with pytest.raises(OptionsError, match="larger than 1000000 bytes together"):
        load_yaml(tmp_path / "all.yml")


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({1, 2}, "got a value of type set"),
        (b"x", "got a value of type bytes"),
        (Opaque(), "got a value of type Opaque"),
        (1j, "got a value of type complex"),
        (np.zeros(2), "got a value of type ndarray"),
        (np.bool_(True), "got a value of type bool"),
        (10**5000, "is too large for a whole number"),
    ],
    ids=["set", "bytes", "object", "complex", "array", "numpy's bool", "digits"],
)
def test_values_that_yaml_cannot_hold_are_told(value, told):
    with pytest.raises(OptionsError) as caught:
        load_options({**TEST, "manual_seed": value, "scael": 3}, training=False, paths=False)
    lines = refusal(caught.value)
    assert len(lines) == 3 and any(line.startswith("options: manual_seed: ") and told in line for line in lines[1:])


def test_numbers_of_numpy_and_paths_become_plain():
    data = {**TEST, "scale": np.int64(2), "manual_seed": np.uint8(3), "path": {"results_root": Path("a")}}
    options = load_options(data, training=False, paths=False)
    assert type(options.scale) is int and options.path.results_root == "a"
    document = document_from_mapping({"a": np.float32(0.5), "b": -math.inf, "c": np.str_("x")})
    assert [type(value) for value in document.data().values()] == [float, float, str]


def test_keys_of_a_mapping_that_are_not_text_are_told_each():
    with pytest.raises(OptionsError) as caught:
        load_options({**TEST, 3: 1, None: 2, ("a", 1): 3, b"x": 4, "val": {True: 1}}, training=False, paths=False)
    assert sum("is not text; keys are text" in line for line in refusal(caught.value)) == 5


def test_mappings_that_hold_themselves_many_times_are_refused():
    shared: dict = {"a": 1}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    loop: list = []
    loop.append(loop)
    for data in ({"x": shared}, {"x": loop}):
        with pytest.raises(OptionsError, match=r"more than 100000 values|nested deeper than 64 levels"):
            document_from_mapping(data)


LONG = "n" * 201


@pytest.mark.parametrize(
    "name", ["a\nb", "a\tb", "a\x00b", "a\x1bb", "a\u2028b", "a\u202eb", "a\ud800b", LONG, "é" * 101]
)
def test_names_that_become_files_are_of_one_line_and_not_too_long(name):
    dataset = {**DATASET, "name": name}
    metric = {"type": "calculate_psnr"}
    for changed, key in (
        ({"name": name}, "name"),
        ({"datasets": {"test": dataset}}, "datasets.test.name"),
        ({"networks": {name: {"path": "n.pth"}}}, "networks."),
        ({"val": {"metrics": {name: metric}}}, "val.metrics."),
        ({"val": {"suffix": name}}, "val.suffix"),
    ):
        with pytest.raises(OptionsError) as caught:
            load_options({**TEST, **changed}, training=False, paths=False)
        lines = refusal(caught.value)
        assert any(line.startswith(f"options: {key}") for line in lines[1:]), (changed, lines)
        assert all(len(line) < 800 for line in lines)


def test_paths_that_no_file_system_holds_are_told_as_missing():
    data = {
        **TEST,
        "networks": {"row": {"path": "x" * 5000}},
        "datasets": {"test": {**DATASET, "dataroot_gt": "y" * 300}},
    }
    with pytest.raises(OptionsError) as caught:
        load_options(data, training=False)
    assert {line.split(": ")[1] for line in refusal(caught.value)[1:]} == {
        "datasets.test.dataroot_gt",
        "datasets.test.dataroot_lq",
        "networks.row.path",
    }


def test_options_as_deep_as_may_be_are_checked_without_an_error_of_the_interpreter(tmp_path):
    file = tmp_path / "deep.yml"
    file.write_text("network_g: {type: EDSR, x: " + "[" * 60 + "]" * 60 + "}\n")
    with pytest.raises(OptionsError, match=r"network_g\.x: unknown key"):
        load_options(file, training=True)
    for override in (":".join("a" * 60) + "=" + "[" * 60 + "]" * 60, ":".join("a" * 5000) + "=1"):
        with pytest.raises(OptionsError, match="nested deeper than 64 levels"):
            load_options(file, overrides=[override], training=True)

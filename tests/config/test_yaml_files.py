"""The YAML reader: values, positions, `_base_`, and everything it refuses."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.config.yaml_files import document_from_mapping, dump_yaml, load_yaml
from basicsr.config.yaml_reader import Loader, Position, parse
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import key_text

OPTIONS = Path(__file__).resolve().parents[2] / "options"


@pytest.fixture
def read(tmp_path):
    """Writes text to options.yml and reads it."""

    def write_and_read(text: str | bytes, name: str = "options.yml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_yaml(file)

    return write_and_read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.5e5", 250000),
        ("5e3", 5000),
        ("1E5", 100000),
        ("-2e2", -200),
        ("1e+3", 1000),
        ("2e-1", 0.2),
        ("3.0", 3.0),
        ("255.", 255.0),
        (".5", 0.5),
        ("250_000", 250000),
        ("0", 0),
        ("-1", -1),
        ("!!float 5e3", 5000),
        ("!!float 2e-4", 2e-4),
        ("!!str 12", "12"),
        ("'1e-4'", "1e-4"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-05-01", "2024-05-01"),
        ("0x1F", "0x1F"),
        ("1_2", "1_2"),
        ("10x2", "10x2"),
        ("none", "none"),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", math.inf),
        ("1e20", 1e20),
    ],
)
def test_scalars_are_read_as_meant(read, text, value):
    got = read(f"key: {text}\n").data()["key"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("010", "010 has a leading zero: write 10 for the number, '010' for text"),
        ("-007", "leading zero: write 7"),
        ("None", "None is text in YAML; write ~ for nothing, or quote it"),
        (".nan", "not a number to compute with"),
        ("1e999", "1e999 is too large for a number"),
        ("!!int 1.5", "not a number that !!int can hold"),
        ("!!bool yes", "!!bool takes true or false"),
    ],
)
def test_misleading_scalars_are_reported_with_their_line(read, text, message):
    document = read(f"a: 1\nb:\n  c: {text}\n")
    (problem,) = document.problems
    assert (problem.position.line, key_text(problem.key)) == (3, "b.c")
    assert message in problem.message


def test_a_key_given_twice_is_reported_with_both_lines(read, tmp_path):
    document = read("train:\n  lr: 1\n  total: 2\n  lr: 3\n")
    (problem,) = document.problems
    file = tmp_path / "options.yml"
    assert str(problem) == f"{file}:4: train.lr: is given twice, here and at {file}:2; keep one"


def test_merge_keys_fill_in_what_is_not_set(read):
    document = read("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 0\n")
    assert document.data()["c"] == {"x": 0, "y": 2, "z": 4}
    assert document.position(("c", "z")).line == 2
    assert document.position(("c", "x")).line == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- 1\n- 2\n", "is a mapping of keys to values"),
        ("a: 1\n---\nb: 2\n", ":2: but found another document"),
        ("a: *b\n", ":1: found undefined alias"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a:\n\tb: 1\n", "indent with spaces, not tabs"),
        ("a: 1\n1: 2\n", ":2: key '1' is not text; keys are text, so quote it"),
        ("a:\n  ~: 2\n", ":2: a: key '~' is not text"),
        ("? [1, 2]\n: 3\n", "key of lists or mappings is not text"),
        ("a: !!python/object/apply:os.system ['true']\n", ":1: a: tag !!python/object/apply:os.system is not read"),
        ("a:\n  b: !include other.yml\n", ":2: a.b: tag !include is not read"),
        ("a: !!binary aGk=\n", "tag !!binary is not read"),
        ("a: !!set {b, c}\n", "tag !!set is not read"),
        ("a: !!timestamp 2024-01-01\n", "tag !!timestamp is not read"),
        ("a: {<<: 3}\n", "'<<' takes a mapping"),
        ("a: \x07\n", "UTF-8"),
        (b"a: 1\nb: \xff\xfe\n", ":2: is not text in UTF-8"),
        ("a: &a [*a]\n", "nested deeper than 64 levels once aliases"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ("a: " + "{b: " * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
        ("a: '" + "x" * 1_000_001 + "'\n", "larger than 1000000 bytes"),
    ],
)
def test_unreadable_files_are_one_line_errors(read, text, message):
    with pytest.raises(OptionsError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "options.yml" in str(caught.value)


def test_too_many_values_are_refused_before_aliases_expand(read):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 6)]
    with pytest.raises(OptionsError, match="more than 100000 values once aliases"):
        read("\n".join(levels))


def test_missing_and_unreadable_files_are_one_line_errors(tmp_path):
    with pytest.raises(OptionsError, match=r"there is no options file .*nowhere\.yml"):
        load_yaml(tmp_path / "nowhere.yml")
    with pytest.raises(OptionsError, match="cannot read the options file"):
        load_yaml(tmp_path)


def test_byte_order_mark_and_windows_line_ends_are_read(read):
    assert read(b"\xef\xbb\xbfa: 1\r\nb: text\r\n").data() == {"a": 1, "b": "text"}


def test_base_is_merged_key_by_key_and_keeps_positions(read, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "b.yml").write_text("x: {p: 1, q: [1, 2]}\ny: 5\n")
    document = read("_base_: base/b.yml\nx:\n  q: [3]\n  r: 4\n")
    assert document.data() == {"x": {"p": 1, "q": [3], "r": 4}, "y": 5}
    assert document.position(("x", "p")) == Position(str(tmp_path / "base" / "b.yml"), 1)
    assert document.position(("x", "q")) == Position(str(tmp_path / "options.yml"), 3)
    assert document.position(("y",)) == Position(str(tmp_path / "base" / "b.yml"), 2)


def test_base_in_an_inner_mapping_is_relative_to_its_own_file(read, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "outer.yml").write_text("network_g:\n  _base_: net.yml\n  upscale: 2\n")
    (tmp_path / "base" / "net.yml").write_text("type: EDSR\nnum_feat: 64\n")
    document = read("_base_: base/outer.yml\nnetwork_g: {num_feat: 8}\n")
    assert document.data() == {"network_g": {"type": "EDSR", "num_feat": 8, "upscale": 2}}


def test_later_bases_win_over_earlier_ones(read, tmp_path):
    (tmp_path / "a.yml").write_text("x: 1\ny: 1\nz: 1\n")
    (tmp_path / "b.yml").write_text("y: 2\nz: 2\n")
    assert read("_base_: [a.yml, b.yml]\nz: 3\n").data() == {"x": 1, "y": 2, "z": 3}


def test_a_block_of_another_type_replaces_the_base_whole(read, tmp_path):
    (tmp_path / "a.yml").write_text("s: {type: MultiStepLR, milestones: [1], gamma: 0.5}\nt: {type: A, k: 1}\n")
    text = "_base_: a.yml\ns: {type: CosineAnnealingLR, T_max: 9}\nt: {type: A, l: 2}\n"
    assert read(text).data() == {
        "s": {"type": "CosineAnnealingLR", "T_max": 9},
        "t": {"type": "A", "k": 1, "l": 2},
    }


def test_null_replaces_what_the_base_has(read, tmp_path):
    (tmp_path / "a.yml").write_text("x: {p: 1}\ny: 1\n")
    assert read("_base_: a.yml\nx: ~\n").data() == {"x": None, "y": 1}


def test_bases_that_form_a_circle_are_refused(read, tmp_path):
    (tmp_path / "a.yml").write_text("_base_: options.yml\n")
    with pytest.raises(OptionsError, match=r"a\.yml:1: .*options\.yml builds on itself"):
        read("_base_: a.yml\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.yml", r"options\.yml:2: there is no options file .*gone\.yml"),
        ("3", r"options\.yml:2: _base_: must be a path or a list of paths"),
        ("[]", r"options\.yml:2: _base_: must be a path"),
        ("empty.yml", r"empty\.yml: is empty"),
    ],
)
def test_unusable_bases_are_named_with_the_line_that_asks_for_them(read, tmp_path, value, message):
    (tmp_path / "empty.yml").write_text("")
    with pytest.raises(OptionsError, match=message):
        read(f"a: 1\n_base_: {value}\n")


def test_bases_that_multiply_are_refused(read, tmp_path):
    for level in range(9):
        (tmp_path / f"{level}.yml").write_text(f"_base_: [{level + 1}.yml, {level + 1}.yml]\n")
    (tmp_path / "9.yml").write_text("x: 1\n")
    with pytest.raises(OptionsError, match="more than 100 files"):
        read("_base_: 0.yml\n")


def test_positions_name_every_key(read, tmp_path):
    file = str(tmp_path / "options.yml")
    assert read("a: 1\nb:\n  c: 2\n  d: [{e: 3}]\n").positions() == {
        ("a",): Position(file, 1),
        ("b",): Position(file, 2),
        ("b", "c"): Position(file, 3),
        ("b", "d"): Position(file, 4),
        ("b", "d", 0, "e"): Position(file, 4),
    }
    assert key_text(("b", "d", 0, "e")) == "b.d[0].e"


def test_overrides_set_one_key_and_are_read_as_yaml(read):
    document = read("train: {total_iter: 5, lr: 1}\nname: a\n")
    document.set("train:total_iter=2.5e5")
    document.set("train:optim_g:betas=[0.9, 0.99]")
    document.set("network_g={type: EDSR, num_feat: 8}")
    document.set("name=a=b")
    assert document.data() == {
        "train": {"total_iter": 250000, "lr": 1, "optim_g": {"betas": [0.9, 0.99]}},
        "network_g": {"type": "EDSR", "num_feat": 8},
        "name": "a=b",
    }
    assert str(document.position(("train", "total_iter"))) == "--force_yml"


def test_templates_of_names_need_no_quotes(read):
    document = read("a: 1\n")
    written = {
        "filename_tmpl={}": "{}",
        "filename_tmpl={}x2": "{}x2",
        "crop_border={scale}": "{scale}",
        "distill={}": {},
    }
    for text, value in written.items():
        document.set(text)
        assert document.data()[text.partition("=")[0]] == value


@pytest.mark.parametrize(
    "override", ["name", "=3", "a::b=3", "name=", "name:x=3", "_base_=x.yml", "a=[1", "a=!!python/none x", "a=*x"]
)
def test_malformed_overrides_are_one_line_errors(read, override):
    document = read("name: a\n")
    with pytest.raises(OptionsError, match=r"^--force_yml: .*"):
        document.set(override)


def test_overrides_cannot_run_code(read, tmp_path):
    document = read("name: a\n")
    marker = tmp_path / "ran"
    text = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    document.set(f'name="]={text}#"')
    document.set(f"x=[{text}]")
    assert not marker.exists()
    assert document.data()["x"] == [text]


def test_mappings_may_name_bases_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yml").write_text("x: 1\n")
    assert document_from_mapping({"_base_": "a.yml", "y": (1, 2)}).data() == {"x": 1, "y": [1, 2]}
    with pytest.raises(OptionsError, match="key 3 is not text"):
        document_from_mapping({"a": {3: 4}})


def test_a_mapping_that_holds_itself_is_refused():
    data: dict = {}
    data["a"] = data
    with pytest.raises(OptionsError, match="nested deeper than 64 levels"):
        document_from_mapping(data)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=12)
    | st.sampled_from(["None", "1e-4", "5e3", "010", "yes", "~", "null", "1:30", "", "<<", "=", "2024-01-01", ".nan"])
)
_KEYS = st.text("abcdefgh_123", min_size=1, max_size=6).filter(lambda key: key != "_base_")


@settings(max_examples=150, deadline=None)
@given(
    data=st.dictionaries(
        _KEYS,
        st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3)),
    ).filter(bool)
)
def test_what_is_written_is_read_back_equal(data, tmp_path_factory):
    file = tmp_path_factory.mktemp("yaml") / "file.yml"
    file.write_text(dump_yaml(data), encoding="utf-8")
    document = load_yaml(file)
    assert document.problems == []
    assert document.data() == data


def tree(node):
    """All of a node that is read of it."""
    content = node.value if node else None
    if isinstance(node, yaml.MappingNode):
        content = [(tree(key), tree(value)) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        content = [tree(value) for value in node.value]
    return node and (node.tag, node.start_mark.index, getattr(node, "style", None) or None, content)


def test_libyaml_reads_and_refuses_what_pyyaml_does():
    """Shipped files as they are, and pieces of them with signs changed at random."""
    generator = random.Random(0)
    texts = [file.read_text("utf-8") for file in sorted(OPTIONS.rglob("*.yml"))]
    pieces = []
    for _ in range(1500):
        lines = generator.choice(texts).splitlines()
        first = generator.randrange(len(lines))
        text = "\n".join(lines[first : first + 5])
        for _ in range(generator.randrange(1, 4)):
            at = generator.randrange(len(text) + 1)
            text = text[:at] + generator.choice("{}[]:,-?&*!|>'\"%@#~ \n a1\u00e9\t") + text[at + 1 :]
        pieces.append(text)
    refused = 0
    for text in texts + pieces:
        try:
            expected = tree(Loader(text).get_single_node())
        except yaml.YAMLError as error:
            refused += 1
            with pytest.raises(type(error)) as caught:
                parse(text)
            assert str(caught.value) == str(error), text
        else:
            assert tree(parse(text)[0]) == expected, text
    assert 300 < refused < 1300

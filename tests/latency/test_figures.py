import json

import pytest

from basicsr.latency.figures import Figure, figures_table, find, merge, read_figures, write_figures
from basicsr.utils.errors import DataError

PHONE = {
    "candidate": "edsr_16x8",
    "device": "Pixel 8",
    "runtime": "litert",
    "precision": "int8",
    "size": [256, 256],
    "median_ms": 12.5,
    "source": "benchmark_model, by hand",
}


def written(path, *entries, version=1):
    path.write_text(json.dumps({"version": version, "figures": list(entries)}))
    return path


def test_a_figure_put_in_by_hand_is_found_by_name_block_and_digest(tmp_path):
    block = {"type": "EDSR", "num_feat": 16, "rgb_mean": [0.4, 0.4, 0.4]}
    entry = {**PHONE, "network": block, "sha256": "ab" * 32}
    figures = read_figures(written(tmp_path / "phone.json", entry))
    where = {"device": "Pixel 8", "runtime": "litert", "precision": "int8", "size": (256, 256)}
    same_block = {"rgb_mean": (0.4, 0.4, 0.4), "num_feat": 16, "type": "EDSR"}
    for known in ({"candidate": "edsr_16x8"}, {"network": same_block}, {"sha256": "ab" * 32}):
        found = find(figures, **where, **known, threads=4)
        assert found is not None and found.median_ms == 12.5
    assert find(figures, **where, candidate="another") is None
    assert find(figures, **{**where, "size": (256, 128)}, candidate="edsr_16x8") is None
    assert find(figures, **{**where, "precision": "float32"}, candidate="edsr_16x8") is None


def test_a_file_that_is_written_is_read_again(tmp_path):
    figures = [Figure.model_validate({**PHONE, "low_ms": 12.0, "high_ms": 13.0, "settings": {"layout": "nhwc"}})]
    write_figures(tmp_path / "folder" / "latency.json", figures)
    assert read_figures(tmp_path / "folder" / "latency.json") == figures


def test_later_figures_replace_earlier_ones_of_the_same_identity():
    first = Figure.model_validate(PHONE)
    faster = Figure.model_validate({**PHONE, "median_ms": 11.0})
    others = [Figure.model_validate({**PHONE, **changed}) for changed in ({"threads": 2}, {"precision": "fp16"})]
    assert merge([first, others[0]], [faster, others[1]]) == [faster, *others]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"median_ms": -1}, r"figures\[0\].median_ms: .*greater than 0, got -1"),
        ({"median_ms": "12"}, r"figures\[0\].median_ms: .*number, got '12'"),
        ({"median_ms": True}, r"figures\[0\].median_ms: .*number, got True"),
        ({"precision": "int4"}, r"figures\[0\].precision: .*'int8', got 'int4'"),
        ({"size": [256]}, r"figures\[0\].size"),
        ({"size": [256, 0]}, r"figures\[0\].size\[1\]: .*got 0"),
        ({"size": "256x256"}, r"figures\[0\].size"),
        ({"device": ""}, r"figures\[0\].device: .*at least 1 character"),
        ({"median": 3}, r"figures\[0\].median: unknown key \(did you mean 'median_ms'\?\)"),
        ({"low_ms": 20.0}, r"figures\[0\]: low_ms 20 is above median_ms 12.5"),
        ({"high_ms": 2.0}, r"figures\[0\]: high_ms 2 is below median_ms 12.5"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(tmp_path, changed, told):
    with pytest.raises(DataError, match=told) as caught:
        read_figures(written(tmp_path / "a.json", {**PHONE, **changed}))
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_and_what_is_missing(tmp_path):
    without = {key: value for key, value in PHONE.items() if key != "source"}
    with pytest.raises(DataError) as caught:
        read_figures(written(tmp_path / "a.json", PHONE, without, {**PHONE, "median_ms": 0}, "text"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("figures[1].source is required")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no JSON file"),
        ("[]", "expected"),
        ('{"version": 1}', "expected"),
        ('{"version": 2, "figures": []}', "version 2 of the format, known is 1"),
        ('{"figures": []}', "version None"),
        ('{"version": 1, "figures": [{"median_ms": NaN}]}', "NaN is no number of JSON"),
    ],
)
def test_another_file_is_refused(tmp_path, content, told):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=told):
        read_figures(tmp_path / "a.json")


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    for name in ("a.json", "none.json"):
        with pytest.raises(DataError):
            read_figures(tmp_path / name)


def test_the_table_shows_what_is_known_and_dashes_for_the_rest():
    figure = Figure.model_validate({**PHONE, "doubt": "other programs took 1.0 of 2 cores meanwhile"})
    _, line, doubt = figures_table([figure]).splitlines()
    assert line.split()[:6] == ["edsr_16x8", "Pixel", "8", "litert", "int8", "256x256"]
    assert line.split()[6:] == ["-", "12.5", "-", "-", "-"]
    assert "no figures to quote" in doubt

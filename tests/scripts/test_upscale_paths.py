"""Which pictures scripts/upscale.py takes, and where results go."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from basicsr.inference.sources import find_sources, plan
from basicsr.utils.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def draw(folder: Path, sides: dict[str, int]) -> None:
    for name, side in sides.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, 3 * side)).save(folder / name)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def below(*inputs: str, **options) -> list[str]:
    return [source.below for source in find_sources(inputs, **options)]


class TestSources:
    def test_a_folder_gives_its_pictures_and_with_recursive_those_below(self, here):
        touch(here, "p/b.PNG", "p/a.jpg", "p/notes.txt", "p/.hidden.png", "p/sub/c.tif", "p/d.png/e.gif")
        assert below("p") == ["a.jpg", "b.PNG"]
        assert below("p/", recursive=True) == ["a.jpg", "b.PNG", "d.png/e.gif", "sub/c.tif"]

    def test_a_pattern_gives_what_lies_below_its_fixed_part(self, here):
        touch(here, "p/a.jpg", "p/notes.txt", "p/x/b.png", "p/x/y/c.png")
        assert below("p/*") == ["a.jpg"]
        assert below("p/**/*.png") == ["x/b.png", "x/y/c.png"]
        assert below("p/?/*.png") == ["x/b.png"]
        assert below("**/c.png") == ["p/x/y/c.png"]
        assert below(str(here / "p/[xyz]/b.*")) == ["x/b.png"]

    def test_a_file_whose_name_looks_like_a_pattern_is_that_file(self, here):
        touch(here, "a[1].png", "a1.png")
        assert below("a[1].png") == ["a[1].png"]

    def test_what_is_named_in_several_ways_is_taken_once(self, here):
        touch(here, "p/a.png", "p/b.png")
        assert below("p/b.png", "p", "./p/*.png", str(here / "p/a.png")) == ["b.png", "a.png"]

    @pytest.mark.parametrize(
        "given, line",
        [
            ("missing.png", "missing.png does not exist; give files, folders"),
            ("empty", r"folder empty holds no picture and no video \(.png, .*; --recursive looks into"),
            ("texts", "folder texts holds no picture"),
            ("p/*.heic", "pattern 'p/\\*.heic' matches 1 files, none of them a picture"),
            ("p/*.gif", "pattern 'p/\\*.gif' matches no file"),
        ],
    )
    def test_nothing_to_do_is_told_in_one_line(self, here, given, line):
        touch(here, "p/a.png", "p/a.heic", "texts/a.txt")
        (here / "empty").mkdir()
        with pytest.raises(DataError, match=line):
            find_sources(["p/a.png", given])


def planned(*inputs: str, output: str = "out", suffix: str = "_x2", **options) -> list[str]:
    jobs, _ = plan(find_sources(inputs, **options), Path(output), suffix=suffix, ending=lambda path: ".png", scale=2)
    return [str(target) for target in jobs.values()]


class TestPlan:
    def test_results_lie_as_the_pictures_do(self, here):
        touch(here, "p/a.jpg", "p/x/a.jpg", "b.tar.tif")
        assert planned("p", "b.tar.tif", recursive=True) == ["out/a_x2.png", "out/x/a_x2.png", "out/b.tar_x2.png"]
        assert planned("p/**/*.jpg", suffix="") == ["out/a.png", "out/x/a.png"]

    @pytest.mark.parametrize("inputs", [("p/a.png", "p/a.jpg"), ("p/a.png", "q/a.png"), ("p", "q")])
    def test_two_results_of_one_name_are_refused(self, here, inputs):
        touch(here, "p/a.png", "q/a.png", "p/a.jpg")
        with pytest.raises(DataError, match=r"would both become out/a_x2\.png"):
            planned(*inputs)

    def test_no_picture_that_is_read_is_written(self, here):
        touch(here, "p/a.png", "p/a_x2.png")
        (here / "link").symlink_to("p")
        with pytest.raises(DataError, match=r"the result of p/a\.png would overwrite p/a\.png"):
            planned("p/a.png", output="p", suffix="")
        for output in ("p", "link", str(here / "p"), "p/../p"):
            with pytest.raises(
                DataError, match=r"the result of p/a\.png would overwrite p/a_x2\.png, which is to be read"
            ):
                planned("p/a.png", "p/a_x2.png", output=output)

    def test_results_of_an_earlier_run_in_the_same_folder_are_left_out(self, here):
        draw(here, {"p/a.png": 10, "p/a_x2.png": 20, "p/a_x2_x2.png": 40, "p/b.png": 8, "p/out/b_x2.png": 16})
        jobs, left_out = plan(find_sources(["p"]), Path("p"), suffix="_x2", ending=lambda path: ".png", scale=2)
        assert jobs == {"p/a.png": Path("p/a_x2.png"), "p/b.png": Path("p/b_x2.png")}
        assert left_out == 2
        found = find_sources(["p"], recursive=True)
        jobs, left_out = plan(found, Path("p/out"), suffix="_x2", ending=lambda path: ".png", scale=2)
        assert Path("p/out/out/b_x2_x2.png") not in jobs.values()

    def test_results_of_an_earlier_run_are_known_in_any_format(self, here):
        draw(here, {"p/a.png": 10, "p/a_x2.png": 20, "p/b.png": 8, "p/b_x2.jpg": 16})
        for ending in (".png", ".jpg", ".webp"):
            jobs, left_out = plan(
                find_sources(["p"]), Path("p"), suffix="_x2", ending=lambda path, ending=ending: ending, scale=2
            )
            assert list(jobs) == ["p/a.png", "p/b.png"]
            assert left_out == 2

    def test_a_picture_of_a_results_name_and_another_size_is_no_result(self, here):
        draw(here, {"p/a.png": 10, "p/a_x2.png": 21})
        with pytest.raises(DataError, match=r"the result of p/a\.png would overwrite p/a_x2\.png, which is to be read"):
            planned("p", output="p")
        assert planned("p") == ["out/a_x2.png", "out/a_x2_x2.png"]

    def test_a_picture_is_done_once_whichever_way_leads_to_it(self, here):
        touch(here, "p/a.png")
        (here / "link").symlink_to("p")
        assert planned("p", "link", "link/a.png", str(here / "p/a.png")) == ["out/a_x2.png"]

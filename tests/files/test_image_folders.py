from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from basicsr.files.image_folders import HIDDEN, MADE, TWICE, Pattern, is_pattern, read_tree
from basicsr.utils.errors import DataError

linux_only = pytest.mark.skipif(sys.platform == "win32", reason="links and wildcards in names")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A function that makes empty files below the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


class TestTree:
    def test_lists_all_folders_in_the_order_of_the_names(self, files):
        files("b/2.png", "b/1.JPG", "a.png", "b-c/1.tif", "b/c/d/0.webp", "z.ppm", "notes.txt", "b/raw.heic")
        tree = read_tree(".")
        assert tree.images == ["a.png", "b/1.JPG", "b/2.png", "b/c/d/0.webp", "b-c/1.tif", "z.ppm"]
        assert tree.others == ["b/raw.heic", "notes.txt"]
        assert tree.folders == ["", "b", "b/c", "b/c/d", "b-c"]

    def test_leaves_out_what_is_hidden_or_the_systems(self, files):
        files("a.png", ".git/b.png", "x/@eaDir/a.png", "__MACOSX/a.png", "x/.c.png", "x/b.png")
        tree = read_tree(".")
        assert tree.images == ["a.png", "x/b.png"]
        assert tree.left_out == [(".git", HIDDEN), ("__MACOSX", HIDDEN), ("x/@eaDir", HIDDEN)]
        assert read_tree(".git").images == ["b.png"]

    def test_leaves_out_what_scripts_made_of_it_unless_it_is_named(self, files):
        files("a.png", "a_EDSR/a.ppm", "LR/X2/ax2.png", "HR/a.png", "mine/a.png", "mine/cache.json")
        Path("a_EDSR/cache.json").write_text('{"format": 1, "key": {"teacher": "12"}}')
        Path("LR/X2/.generate_lr.json").write_text(json.dumps({"scale": 2, "hr_multiple": 2}))
        Path("HR/.generate_lr.json").write_text(json.dumps({"hr_multiple": 2}))
        tree = read_tree(".")
        assert tree.images == ["HR/a.png", "a.png", "mine/a.png"]
        assert tree.left_out == [("LR/X2", MADE), ("a_EDSR", MADE)]
        assert read_tree("LR/X2").images == ["ax2.png"]
        assert read_tree("LR/X2", named=False).images == []

    @linux_only
    def test_reads_each_folder_once_and_ends(self, files):
        files("real/a.png", "real/deep/b.png", "../elsewhere/c.png")
        os.symlink("real", "0 first by name")
        os.symlink("..", "real/up")
        os.symlink("loop", "loop")
        os.symlink("../elsewhere", "outside")
        os.symlink("../elsewhere", "outside again")
        os.symlink("gone", "broken")
        tree = read_tree(".")
        assert tree.images == ["outside/c.png", "real/a.png", "real/deep/b.png"]
        assert tree.left_out == [("0 first by name", TWICE), ("outside again", TWICE), ("real/up", TWICE)]

    def test_of_no_folder_is_an_error(self, files):
        files("a.png")
        for name in ("nowhere", "a.png"):
            with pytest.raises(DataError, match=f"cannot read folder {name}"):
                read_tree(name)


class TestPattern:
    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("*/HR", {"A/1.png": "A/HR/1.png", "A/s/2.png": "A/HR/s/2.png", "B/1.JPG": "B/HR/1.JPG"}),
            ("*/HR/*.jpg", {"B/1.JPG": "B/HR/1.JPG"}),
            ("[!B]/HR/**", {"A/1.png": "A/HR/1.png", "A/s/2.png": "A/HR/s/2.png"}),
            ("**/HR/*.png", {"A/1.png": "A/HR/1.png"}),
            ("?/HR/1.png", {"A/1.png": "A/HR/1.png"}),
            ("**/s", {"A/HR/2.png": "A/HR/s/2.png"}),
            ("A/*/X[2-4]", {"LR/X2/1x2.png": "A/LR/X2/1x2.png"}),
        ],
    )
    def test_names_images_by_what_it_leaves_open(self, files, text, named):
        files("A/HR/1.png", "A/HR/s/2.png", "A/LR/X2/1x2.png", "B/HR/1.JPG", "B/HR/notes.txt")
        for before in ("", f"{os.getcwd()}/"):
            assert dict(Pattern(before + text).images()) == {name: before + path for name, path in named.items()}

    @pytest.mark.parametrize("text", ["photos/**", "photos/**/*", "photos/**/**", "photos/**/*.*"])
    def test_of_all_below_is_the_folder(self, files, text):
        files("photos/b/1.png", "photos/a.jpg", "photos/.h/2.png", "photos/b/c/d.tif", "photos/n.txt")
        assert [name for name, _ in Pattern(text).images()] == read_tree("photos").images

    def test_that_matches_images_and_folders_is_refused(self, files):
        files("p/a.png", "p/b/c.png")
        with pytest.raises(DataError, match=r"p/\* matches both images \(p/a\.png\) and folders.*; write p/\*/"):
            Pattern("p/*").images()
        assert Pattern("p/*/").images() == [("b/c.png", "p/b/c.png")]
        assert Pattern("p/*.*").images() == [("a.png", "p/a.png")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("p/*.jpg", r"p/\*\.jpg matches nothing; check the path"),
            ("q/*.jpg", r"matches nothing, as there is no folder q"),
            ("p/*.txt", "matches files, but no image"),
            ("p/e*", "matches folders without images, such as p/empty"),
            ("p/a**/x", r"\*\* stands for whole folders"),
            ("p/[z-a]", r"p/\[z-a\] is no pattern: bad character range"),
            ("p/[", "matches nothing"),
            ("**/x/**/1.png", r"would call both x/1\.png and x/y/x/1\.png|would call both"),
        ],
    )
    def test_of_no_use_is_one_line(self, files, text, message):
        files("p/a.txt", "p/a.png", "x/y/1.png", "y/x/1.png", "x/x/y/1.png")
        Path("p/empty").mkdir()
        with pytest.raises(DataError, match=message) as caught:
            Pattern(text).images()
        assert "\n" not in str(caught.value)

    @linux_only
    def test_takes_no_folder_twice_through_links(self, files):
        files("sets/a/1.png", "sets/b/1.png")
        os.symlink("a", "sets/latest")
        os.symlink("..", "sets/up")
        assert [name for name, _ in Pattern("sets/*/").images()] == ["a/1.png", "b/1.png"]

    @linux_only
    def test_is_no_path_that_exists(self, files):
        files("photos [2019]/a.png", "what?.png")
        assert not is_pattern("photos [2019]")
        assert not is_pattern("what?.png")
        assert not is_pattern("photos")
        assert is_pattern("photos [2020]")

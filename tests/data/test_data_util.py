from __future__ import annotations

from pathlib import Path

import pytest

from basicsr.data.data_util import (
    paired_paths_from_folder,
    paired_paths_from_lmdb,
    paired_paths_from_meta_info_file,
    paths_from_folder,
    paths_from_meta_info_file,
)
from basicsr.utils.errors import DataError, OptionsError

KEYS = ["lq", "gt"]


@pytest.fixture
def folders(tmp_path):
    """A function that creates files, by folder, and returns [LR folder, HR folder]."""

    def create(lq: list[str], gt: list[str]) -> list[str]:
        for folder, names in (("lq", lq), ("gt", gt)):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / name).write_bytes(b"")
        return [str(tmp_path / "lq"), str(tmp_path / "gt")]

    return create


def names(pairs: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(Path(pair["lq_path"]).name, Path(pair["gt_path"]).name) for pair in pairs]


class TestFolders:
    def test_pairs_by_template_in_order_of_the_hr_names(self, folders):
        both = folders(["bx2.png", "ax2.png"], ["b.png", "a.png", "notes.txt"])
        assert names(paired_paths_from_folder(both, KEYS, "{}x2")) == [
            ("ax2.png", "a.png"),
            ("bx2.png", "b.png"),
        ]

    def test_endings_may_differ(self, folders):
        both = folders(["ax2.png"], ["a.JPG"])
        assert names(paired_paths_from_folder(both, KEYS, "{}x2")) == [("ax2.png", "a.JPG")]

    def test_hr_without_lr_is_named_and_counted(self, folders):
        both = folders(["c.png"], [f"{name}.png" for name in "abcdef"])
        with pytest.raises(DataError, match=r"gt has 5 images \(a\.png, b\.png, d\.png, \.\.\.\).* such as a\.png in"):
            paired_paths_from_folder(both, KEYS, "{}")

    def test_lr_without_hr_is_named(self, folders):
        with pytest.raises(DataError, match=r"lq has 1 image \(bx2\.png\) without a partner in .*gt"):
            paired_paths_from_folder(folders(["ax2.png", "bx2.png"], ["a.png"]), KEYS, "{}x2")

    def test_a_name_with_two_endings_is_refused(self, folders):
        with pytest.raises(DataError, match=r"has both a\.jpg and a\.png"):
            paired_paths_from_folder(folders(["a.png", "a.jpg"], ["a.png"]), KEYS, "{}")

    def test_missing_and_empty_folders_are_named(self, folders, tmp_path):
        both = folders(["notes.txt"], ["a.png"])
        with pytest.raises(DataError, match=r"lq holds no image"):
            paired_paths_from_folder(both, KEYS, "{}")
        with pytest.raises(DataError, match="nowhere: No such file"):
            paired_paths_from_folder([str(tmp_path / "nowhere"), both[1]], KEYS, "{}")
        with pytest.raises(DataError, match="holds no image"):
            paths_from_folder(both[0])

    @pytest.mark.parametrize("template", ["x2", "{}{}", "{name}", "{}x{", "{0}"])
    def test_templates_without_one_pair_of_braces_are_refused(self, folders, template):
        with pytest.raises(OptionsError, match=r"filename_tmpl must hold \{\} once"):
            paired_paths_from_folder(folders(["a.png"], ["a.png"]), KEYS, template)


class TestMetaInfo:
    def write(self, tmp_path: Path, text: str) -> str:
        (tmp_path / "meta.txt").write_text(text)
        return str(tmp_path / "meta.txt")

    def test_lists_some_of_the_images_in_its_own_order(self, folders, tmp_path):
        both = folders(["ax2.png", "bx2.png"], ["a.png", "b.png", "c.png"])
        meta = self.write(tmp_path, "b.png (4,4,3)\n\na.png (4,4,3)\n")
        pairs = paired_paths_from_meta_info_file(both, KEYS, meta, "{}x2")
        assert names(pairs) == [("bx2.png", "b.png"), ("ax2.png", "a.png")]
        assert paths_from_meta_info_file(both[1], meta) == [f"{both[1]}/b.png", f"{both[1]}/a.png"]

    @pytest.mark.parametrize(
        ("line", "name"),
        [
            ("my photo 1.png (4,4,3)", "my photo 1.png"),
            ("my photo 1.png", "my photo 1.png"),
            ("my  photo (1).PNG (4, 4, 3)", "my  photo (1).PNG"),
            ("two.png or one.png (4,4,3)", "two.png or one.png"),
            ("a.png (4,4,3) 1", "a.png"),
            ("a.png (4,4)", "a.png"),
            ("a.png 4 4 3", "a.png"),
            ("a.png", "a.png"),
        ],
    )
    def test_names_may_have_blanks(self, folders, tmp_path, line, name):
        both = folders([name], [name])
        meta = self.write(tmp_path, f"{line}\n")
        assert names(paired_paths_from_meta_info_file(both, KEYS, meta, "{}")) == [(name, name)]

    def test_a_line_that_may_be_one_name_or_two_is_refused(self, folders, tmp_path):
        both = folders(["a.png", "a.png b.png"], ["a.png", "a.png b.png"])
        with pytest.raises(DataError, match=r"line 2 of .*may name one image with blanks or two: a\.png b\.png; write"):
            paired_paths_from_meta_info_file(both, KEYS, self.write(tmp_path, "a.png\na.png b.png\n"), "{}")

    @pytest.mark.parametrize("path", ["/etc/passwd", "../gt/a.png", "x/../../a.png", "C:\\a.png"])
    def test_paths_out_of_the_folder_are_refused(self, folders, tmp_path, path):
        both = folders(["a.png"], ["a.png"])
        with pytest.raises(DataError, match="not below the dataset's folder"):
            paired_paths_from_meta_info_file(both, KEYS, self.write(tmp_path, f"{path} (4,4,3)\n"), "{}")

    def test_missing_images_are_named(self, folders, tmp_path):
        both = folders(["a.png"], ["a.png", "b.png"])
        with pytest.raises(DataError, match=r"names 1 image \(.*lq/b\.png\) that do not exist"):
            paired_paths_from_meta_info_file(both, KEYS, self.write(tmp_path, "a.png\nb.png\n"), "{}")

    def test_an_image_named_twice_is_refused(self, folders, tmp_path):
        both = folders(["a.png"], ["a.png"])
        with pytest.raises(DataError, match="name each once"):
            paired_paths_from_meta_info_file(both, KEYS, self.write(tmp_path, "a.png\na.png\n"), "{}")

    def test_a_missing_or_empty_file_is_named(self, folders, tmp_path):
        both = folders(["a.png"], ["a.png"])
        with pytest.raises(DataError, match=r"none\.txt: No such file"):
            paired_paths_from_meta_info_file(both, KEYS, str(tmp_path / "none.txt"), "{}")
        with pytest.raises(DataError, match="names no image"):
            paired_paths_from_meta_info_file(both, KEYS, self.write(tmp_path, "\n"), "{}")


class TestLmdb:
    def write(self, folder: Path, text: str) -> str:
        folder.mkdir()
        (folder / "meta_info.txt").write_text(text)
        return str(folder)

    def test_pairs_equal_keys(self, tmp_path):
        lq = self.write(tmp_path / "lq.lmdb", "b.png (2,2,3) 1\na.png (2,2,3) 1\n")
        gt = self.write(tmp_path / "gt.lmdb", "a.png (4,4,3) 1\nb.png (4,4,3) 1\n")
        pairs = paired_paths_from_lmdb([lq, gt], KEYS)
        assert pairs == [{"lq_path": "a", "gt_path": "a"}, {"lq_path": "b", "gt_path": "b"}]

    def test_keys_of_one_database_only_are_named(self, tmp_path):
        lq = self.write(tmp_path / "lq.lmdb", "ax2.png (2,2,3) 1\n")
        gt = self.write(tmp_path / "gt.lmdb", "a.png (4,4,3) 1\n")
        with pytest.raises(DataError, match=r"gt\.lmdb has 1 image \(a\) without a partner in .*lq\.lmdb"):
            paired_paths_from_lmdb([lq, gt], KEYS)

"""No image vanishes from a set: what a folder lists is what runs see, or is told."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.checks.checking import check_images, dataset_warnings, report
from basicsr.data.data_util import (
    count_mismatch,
    folder_warnings,
    paired_paths_from_folder,
    paths_from_folder,
    set_name,
)
from basicsr.files.file_client import FileClient
from basicsr.files.images import encode_png
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError
from basicsr.utils.misc import scandir


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 8, 3), 90, np.uint8))


def dead_link(path: Path) -> None:
    path.symlink_to("gone.png")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # such names may have 100 bytes


FAULTS = {
    "No such file or directory; it is a link to gone.png": dead_link,
    "Too many levels of symbolic links; it is a link to": loop,
    "it is no file but a pipe": os.mkfifo,
    "it is no file but a folder": Path.mkdir,
    "it is no file but a socket": unix_socket,
}


@pytest.mark.skipif(sys.platform != "linux", reason="links, pipes and sockets")
@pytest.mark.parametrize(("reason", "make"), FAULTS.items())
@pytest.mark.parametrize("roles", [("HR", "LR"), ("LR",)])
def test_an_entry_that_is_no_readable_file_is_found_and_never_waited_for(tmp_path, reason, make, roles):
    for role in ("HR", "LR"):
        image(tmp_path / role / "good.png")
        (make if role in roles else image)(tmp_path / role / "bad.png")
    block = {"name": "x", "type": "PairedImageDataset", "phase": "test", "scale": 1}
    roots = {"dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "LR")}
    dataset = build_dataset({**block, **roots})
    assert len(dataset) == 2
    for check in ("headers", "full"):
        bad = check_images(dataset, DatasetOptions(**block, **roots, check_images=check), processes=1)
        assert [image.path for image in bad] == [str(tmp_path / role / "bad.png") for role in roles]
        assert all(reason in image.reason for image in bad)
        assert report(bad, 2, "x").startswith("1 of 2 images of dataset x cannot be used:")
    with pytest.raises(DataError, match=r"cannot read .*bad\.png: "):
        dataset[0]
    with pytest.raises(DataError, match=reason):
        FileClient().get(tmp_path / "LR" / "bad.png")


def test_folders_in_a_circle_end(tmp_path):
    image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(scandir(tmp_path, ".png", recursive=True)) == ["a/x.png"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"cannot read folder .*loop: Too many levels"):
        paths_from_folder(str(tmp_path / "loop"))


class TestWhatLiesBeside:
    def test_is_told_with_a_remedy(self, tmp_path):
        for name in ("a.png", "B.JPG", "c.Png", "A.png", "._a.png", ".b.png", "beach/1.png", "beach/more/2.png"):
            image(tmp_path / name)
        for name in ("d.jfif", "e.AVIF", "f.gif", "0005", "notes.txt"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "empty").mkdir()
        for name in (".thumbnails/1.png", "@eaDir/a.png"):
            image(tmp_path / name)
        found = [path.removeprefix(f"{tmp_path}/") for path in paths_from_folder(str(tmp_path))]
        assert found == ["A.png", "B.JPG", "a.png", "beach/1.png", "beach/more/2.png", "c.Png"]
        told = list(folder_warnings(str(tmp_path)))
        own = ", ".join(f"{tmp_path}/*{ending}" for ending in (".JPG", ".Png", ".png"))
        assert told[0] == f"4 in it and 2 in 1 folder (beach: 2) below are used; its own alone by {own}"
        assert "2 folders (.thumbnails: 1, @eaDir: 1) in it, with images, not read (hidden, or the system's)" in told[1]
        told.pop(0)
        assert "4 files (0005, d.jfif, e.AVIF, ...) in it not read, because of the ending" in told[1]
        assert "1 hidden file (.b.png) in it not read" in told[2]
        assert "ending only (A.png and a.png)" in told[3]
        assert len(told) == 4

    def test_is_what_an_empty_folder_is_told_of(self, tmp_path):
        image(tmp_path / ".2019" / "x.png")
        (tmp_path / "a.heic").write_bytes(b"x")
        with pytest.raises(DataError, match=r"holds no image .*1 folder \(\.2019: 1\).*; 1 file \(a\.heic\) in it not"):
            paths_from_folder(str(tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_that_cannot_be_read_is_an_error(self, tmp_path):
        image(tmp_path / "open" / "x.png")
        image(tmp_path / "closed" / "x.png")
        (tmp_path / "closed").chmod(0)
        try:
            with pytest.raises(DataError, match=r"cannot read folder .*closed: Permission denied"):
                paths_from_folder(str(tmp_path))
        finally:
            (tmp_path / "closed").chmod(0o755)

    def test_of_a_plain_folder_is_nothing(self, tmp_path):
        image(tmp_path / "a.png")
        (tmp_path / "README.txt").write_text("x")
        (tmp_path / ".generate_lr.json").write_text("{}")
        assert list(folder_warnings(str(tmp_path))) == []

    def test_in_an_lmdb_database_is_told(self, tmp_path):
        with LmdbMaker(tmp_path / "a.lmdb") as maker:
            for key in ("1", "2"):
                maker.put(encode_png(np.zeros((4, 4, 3), np.uint8), 1), key, (4, 4, 3))
        (tmp_path / "a.lmdb" / "meta_info.txt").write_text("1.png (4,4,3) 1\n")
        block = {"type": "SingleImageDataset", "dataroot_lq": str(tmp_path / "a.lmdb"), "io_backend": {"type": "lmdb"}}
        (told,) = dataset_warnings("x", build_dataset(block).stored_images(), "test")
        assert "a.lmdb has 2 images, its meta_info.txt lists 1" in told


class TestKnownSets:
    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("Set5", 5),
            ("Set5_x2", 5),
            ("set_14", 14),
            ("B100", 100),
            ("BSD100", 100),
            ("Urban100", 100),
            ("manga109", 109),
        ]
        + [("DIV2K_valid_HR", 100), ("DIV2K_train_HR", 800), ("Flickr2K", 2650)],
    )
    def test_have_the_published_number(self, name, count):
        assert count_mismatch(name, count) is None
        assert f"{count - 1:,d} images here, " in str(count_mismatch(name, count - 1))
        assert count_mismatch(f"{name}_sub", 1) is None

    @pytest.mark.parametrize(
        ("root", "name"),
        [
            ("benchmark/Set5/HR", "Set5"),
            ("benchmark/Set5/LR_bicubic/X2", "Set5"),
            ("Set14/GTmod12/", "Set14"),
            ("Set5/image_SRF_4", "Set5"),
            ("Rain13k/test/Rain100L/target", "Rain100L"),
            ("DIV2K/DIV2K_train_HR_sub", "DIV2K_train_HR_sub"),
            ("DIV2K/Set5.lmdb", "Set5"),
        ],
    )
    def test_are_known_by_their_folders(self, root, name):
        assert set_name(root) == name

    def test_are_warned_of_unless_a_list_chooses_for_training(self, tmp_path):
        for role in ("HR", "LR"):
            for number in range(4):
                image(tmp_path / "Set5" / role / f"{number}.png")
        (tmp_path / "list.txt").write_text("0.png\n1.png (8,8,3)\n")
        block = {"type": "PairedImageDataset", "phase": "test", "scale": 1}
        block |= {"dataroot_gt": str(tmp_path / "Set5/HR"), "dataroot_lq": str(tmp_path / "Set5/LR")}
        whole = build_dataset(block).stored_images()
        assert dataset_warnings("mine", whole, "train") == ["mine: 4 images here, Set5 has 5: figures are not its own"]
        chosen = build_dataset({**block, "meta_info_file": str(tmp_path / "list.txt")}).stored_images()
        assert dataset_warnings("mine", chosen, "train") == []
        assert dataset_warnings("Set5", chosen, "test") == ["Set5: 2 images here, Set5 has 5: figures are not its own"]


def test_a_wrong_template_is_told_with_the_right_one(tmp_path):
    for name in ("HR/my 1.png", "HR/my 2.png", "LR/my 1x4.png", "LR/my 2x4.png"):
        image(tmp_path / name)
    folders = [str(tmp_path / "LR"), str(tmp_path / "HR")]
    with pytest.raises(DataError, match=r"names there look like my 1x4\.png: set filename_tmpl: '\{\}x4'"):
        paired_paths_from_folder(folders, ["lq", "gt"], "{}x2")
    (tmp_path / "LR" / "my 2x4.png").rename(tmp_path / "LR" / "My 2x4.png")
    with pytest.raises(DataError, match=r"My 2x4\.png is written otherwise \(upper and lower case count\)"):
        paired_paths_from_folder(folders, ["lq", "gt"], "{}x4")

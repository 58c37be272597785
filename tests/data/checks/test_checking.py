from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from basicsr.data import build_dataset, build_eval_dataset
from basicsr.data.base import SampleKey, load_or_replace, load_sample
from basicsr.data.checks.checking import BadImage, check_images, report
from basicsr.data.checks.notes import fingerprint
from basicsr.data.transforms import check_patches_fit
from basicsr.files.images import encode_png, imfrombytes
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError, MachineError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "cache" / "basicsr"))
    return tmp_path / "cache" / "basicsr"


@pytest.fixture
def options(image_pairs) -> dict[str, Any]:
    """Options of six pairs, HR 48x48 and LR 24x24."""
    gt_root, lq_root = image_pairs(scale=2, count=6, size=24)
    return {
        "type": "PairedImageDataset",
        "dataroot_gt": str(gt_root),
        "dataroot_lq": str(lq_root),
        "filename_tmpl": "{}x2",
        "io_backend": {"type": "disk"},
        "scale": 2,
        "phase": "train",
        "gt_size": 48,
    }


def check(dataset: Any, level: str = "headers", rank: int = 0, world_size: int = 1) -> list[BadImage]:
    settings: Any = SimpleNamespace(check_images=level, name="tiny")
    return check_images(dataset, settings, rank=rank, world_size=world_size, processes=1)


def rewrite(options: dict[str, Any], role: str, index: int, height: int, width: int) -> Path:
    path = sorted(Path(options[f"dataroot_{role}"]).iterdir())[index]
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


class TestRules:
    def test_a_patch_must_fit_unless_small_images_are_extended(self, options):
        rewrite(options, "gt", 2, 46, 48), rewrite(options, "lq", 2, 23, 24)
        (bad,) = check(build_dataset(options))
        assert (bad.index, bad.reason.endswith("smaller than patches of 48 (LR 24); lower gt_size")) == (2, True)
        assert check(build_dataset({**options, "extend_small": True})) == []
        assert check(build_dataset({**options, "gt_size": 44})) == []

    @pytest.mark.parametrize("more, reason", [(1, None), (11, None), (12, "is much larger"), (-1, "is smaller")])
    def test_in_evaluation_pixels_may_be_left_over(self, options, more, reason):
        rewrite(options, "gt", 2, 48 + more, 48)
        found = check(build_dataset({**options, "phase": "val"}))
        assert [image.index for image in found] == ([] if reason is None else [2])
        assert all(reason in image.reason for image in found)
        assert [image.index for image in check(build_dataset(options))] == [2]

    @pytest.mark.parametrize("kind", [".jpg", ".png", ".tiff"])
    def test_images_stored_on_their_side_are_not_accused(self, options, kind):
        notes = Image.Exif()
        notes[0x0112] = 6
        path = rewrite(options, "gt", 1, 48, 48)
        rewrite(options, "lq", 1, 24, 30)
        Image.fromarray(np.zeros((60, 48, 3), np.uint8)).save(path.with_suffix(kind), exif=notes)
        if kind != ".png":
            path.unlink()
        if imfrombytes(path.with_suffix(kind).read_bytes()).shape[:2] == (60, 48):
            pytest.skip(f"this OpenCV does not turn {kind} files")
        dataset = build_dataset(options)
        assert check(dataset) == []
        assert load_sample(dataset, SampleKey(1, 0))["gt"].shape == (3, 48, 48)

    def test_decoding_tells_gray_from_colour_and_finds_damaged_pixels(self, options):
        gray = sorted(Path(options["dataroot_gt"]).iterdir())[0]
        cv2.imwrite(str(gray), cv2.imread(str(gray), cv2.IMREAD_GRAYSCALE))
        colour = np.zeros((24, 24, 3), np.uint8)
        colour[..., 2] = 200
        cv2.imwrite(str(sorted(Path(options["dataroot_lq"]).iterdir())[0]), colour)
        torn = sorted(Path(options["dataroot_lq"]).iterdir())[3]
        torn.write_bytes(torn.read_bytes()[:200] + bytes(40) + torn.read_bytes()[240:])
        dataset = build_dataset(options)
        assert check(dataset) == []
        first, second = check(dataset, "full")
        assert (first.index, "is gray, but" in first.reason) == (0, True)
        assert (second.index, second.path, "wrong checksum" in second.reason) == (3, str(torn), True)

    def test_a_list_of_a_database_that_lies_is_told(self, tmp_path):
        with LmdbMaker(tmp_path / "a.lmdb") as maker:
            maker.put(encode_png(np.zeros((8, 8, 3), np.uint8), 1), "a", (8, 8, 3))
            maker.put(encode_png(np.zeros((8, 8, 3), np.uint8), 1), "b", (480, 480, 3))
        single = {"type": "SingleImageDataset", "dataroot_lq": str(tmp_path / "a.lmdb"), "io_backend": {"type": "lmdb"}}
        (bad,) = check(build_dataset(single))
        assert (bad.index, bad.path) == (1, f"{tmp_path}/a.lmdb (key 'b')")
        assert bad.reason.startswith("meta_info.txt says 480x480, the image is 8x8")

    def test_a_file_that_is_gone_is_told(self, options):
        dataset = build_dataset(options)
        gone = sorted(Path(options["dataroot_lq"]).iterdir())[4]
        gone.unlink()
        assert check(dataset) == [BadImage(4, str(gone), "No such file or directory; check the path")]

    def test_datasets_of_other_kinds_are_left_alone(self):
        class Foreign(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 3

            def __getitem__(self, index: int) -> Any:
                raise AssertionError

        assert check(Foreign(), "full") == []
        assert fingerprint(Foreign()) == {"images": 3, "names": None}

    def test_evaluation_hands_its_dataset_on(self, options):
        rewrite(options, "lq", 5, 30, 30)
        settings: Any = SimpleNamespace(
            arguments={key: value for key, value in options.items() if key not in ("type", "scale", "phase")},
            **dict.fromkeys(["batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode"]),
            **dict.fromkeys(["num_prefetch_queue", "pin_memory", "persistent_workers", "use_shuffle"]),
            **{"type": options["type"], "name": "tiny", "phase": "val", "scale": 2},
        )
        dataset = build_eval_dataset(settings)
        assert [image.index for image in check(dataset)] == [5]
        assert fingerprint(dataset) == fingerprint(build_dataset(options))


class TestCache:
    def files(self, cache: Path) -> list[Path]:
        return sorted(cache.glob("images-*.json"))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[" * 5000,
            b"null",
            b'{"version": 1}',
            b'{"version": 1, "root": "x", "images": {}}',
            bytes(99),
        ],
    )
    def test_that_is_damaged_is_ignored_and_made_anew(self, options, cache, content):
        dataset = build_dataset(options)
        check(dataset)
        before = [path.read_bytes() for path in self.files(cache)]
        for path in self.files(cache):
            path.write_bytes(content)
        assert check(dataset) == []
        assert [path.read_bytes() for path in self.files(cache)] == before

    @pytest.mark.parametrize(
        "place, value",
        [(3, 7), (3, {}), (4, None), (4, ["PNG"]), (4, ["PNG", "x", 1, 3, 8, "colour"]), (5, "x"), (4, 3)],
    )
    def test_entries_that_make_no_sense_are_looked_up_again(self, options, cache, place, value):
        dataset = build_dataset(options)
        check(dataset)
        for path in self.files(cache):
            notes = json.loads(path.read_text())
            for entry in notes["images"].values():
                entry[place] = value
            path.write_text(json.dumps(notes))
        assert check(dataset) == []

    def test_that_cannot_be_written_is_done_without(self, options, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "file"))
        assert check(build_dataset(options)) == []
        assert (tmp_path / "file").read_text() == ""

    def test_serves_other_ranks_and_other_datasets_of_the_same_folder(self, options, cache):
        for rank in range(2):
            check(build_dataset(options), rank=rank, world_size=2)
        assert len(self.files(cache)) == 4
        times = [path.stat().st_mtime_ns for path in self.files(cache)]
        assert check(build_dataset({**options, "phase": "val"})) == []
        assert [path.stat().st_mtime_ns for path in self.files(cache)] == times

    def test_what_headers_showed_does_not_stand_for_decoding(self, options, cache):
        dataset = build_dataset(options)
        check(dataset)
        headers = self.files(cache)[0].read_bytes()
        check(dataset, "full")
        decoded = self.files(cache)[0].read_bytes()
        assert decoded != headers
        check(dataset)
        assert self.files(cache)[0].read_bytes() == decoded


class TestReport:
    def test_lists_twenty_and_counts_the_rest(self):
        bad = [BadImage(index, f"{index:02d}.png", "the file is empty") for index in reversed(range(25))]
        lines = report(bad, 100, "DIV2K").splitlines()
        assert lines[0] == "25 of 100 images of dataset DIV2K cannot be used:"
        assert lines[1:21] == [f"  {index:02d}.png: the file is empty" for index in range(20)]
        assert lines[21] == "  and 5 more"
        assert len(lines) == 23

    def test_one_wrong_setting_is_one_line_with_a_count_and_single_faults_stay_lines(self, tmp_path):
        sizes = [(24 + index, 24) for index in range(30)]
        bad = []
        for index, size in enumerate(sizes):
            names = f"my images/HR/{index:02d}.png", f"my images/LR/{index:02d}x4.png"
            with pytest.raises(DataError) as caught:
                check_patches_fit(size, (12, 12), None, 4, *names)
            bad.append(BadImage(index, names[0], str(caught.value), names))
        bad.append(BadImage(30, "HR/30.png", "the file is empty"))
        lines = report(bad, 31, "x").splitlines()
        assert "the LR image is of scale 2; check scale, dataroot_lq and filename_tmpl" in lines[1]
        assert len(lines) <= 7 and "  HR/30.png: the file is empty" in lines
        assert sum(int(found) for line in lines for found in re.findall(r"and (\d+) more pairs like it", line)) >= 28

    def test_pairs_with_two_bad_images_count_once_and_names_cannot_forge_lines(self):
        bad = [BadImage(3, "HR/a\n.png", "the file is empty"), BadImage(3, "LR/a\x1b[2J.png", "the file is empty")]
        lines = report(bad, 9, "x").splitlines()
        assert lines[:3] == [
            "1 of 9 images of dataset x cannot be used:",
            "  HR/a\\n.png: the file is empty",
            "  LR/a\\x1b[2J.png: the file is empty",
        ]


class TestFingerprint:
    def test_depends_on_names_and_their_order_but_not_on_where_they_lie(self, options, tmp_path, image_pairs):
        elsewhere = image_pairs(scale=2, count=6, size=24, folder="copy")
        other = {**options, "dataroot_gt": str(elsewhere[0]), "dataroot_lq": str(elsewhere[1])}
        expected = fingerprint(build_dataset(options))
        assert expected["images"] == 6 and len(expected["names"]) == 64
        assert fingerprint(build_dataset(other)) == expected
        for role, folder in zip(("gt", "lq"), elsewhere, strict=True):
            with LmdbMaker(tmp_path / f"{role}.lmdb") as maker:
                for path in sorted(folder.iterdir()):
                    maker.put(path.read_bytes(), path.stem.removesuffix("x2"), cv2.imread(str(path)).shape)
        packed = {"dataroot_gt": str(tmp_path / "gt.lmdb"), "dataroot_lq": str(tmp_path / "lq.lmdb")}
        assert fingerprint(build_dataset({**options, **packed, "io_backend": {"type": "lmdb"}})) == expected
        (tmp_path / "meta.txt").write_text("".join(f"img{index:03d}.png\n" for index in (1, 0, 2, 3, 4, 5)))
        listed = fingerprint(build_dataset({**options, "meta_info_file": str(tmp_path / "meta.txt")}))
        assert (listed["images"], listed["names"] != expected["names"]) == (6, True)

    @pytest.mark.parametrize("role", ["gt", "lq"])
    def test_depends_on_the_pixels_of_both_kinds_of_images(self, options, role):
        expected = fingerprint(build_dataset(options))
        path = min(Path(options[f"dataroot_{role}"]).iterdir())
        cv2.imwrite(str(path), cv2.imread(str(path)) ^ 1)
        found = fingerprint(build_dataset(options))
        first = f"pixels of image 0 ({role})"
        assert found[first] != expected[first] and {**found, first: expected[first]} == expected
        path.write_bytes(b"no image")
        assert fingerprint(build_dataset(options)) == {**expected, first: None}, "the others are compared all the same"

    def test_of_a_root_with_a_slash_at_its_end_is_the_same(self, options):
        slashed = {**options, "dataroot_gt": options["dataroot_gt"] + "/"}
        assert fingerprint(build_dataset(slashed)) == fingerprint(build_dataset(options))


class Raising(torch.utils.data.Dataset[Any]):
    """A dataset as BasicSR's users write them, that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.paths = [{"lq_path": f"LR/{index}.png", "gt_path": f"HR/{index}.png"} for index in range(4)]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index in (1, 2):
            raise self.error
        return {"lq": torch.full((3, 2, 2), float(index)), "lq_path": self.paths[index]["lq_path"]}


class TestWhatADatasetRaises:
    @pytest.mark.parametrize(
        "error, kind",
        [
            (OSError(errno.EIO, "Input/output error", "LR/1.png"), DataError),
            (FileNotFoundError(errno.ENOENT, "No such file or directory", "LR/1.png"), DataError),
            (OSError(errno.EMFILE, "Too many open files"), MachineError),
            (MemoryError(), MachineError),
            (KeyError("gt_path"), RuntimeError),
            (cv2.error("empty image"), RuntimeError),
        ],
    )
    def test_arrives_with_the_sample_named(self, error, kind):
        with pytest.raises(kind, match=r"sample 1 of Raising \(LR/1\.png, HR/1\.png\)") as caught:
            load_sample(Raising(error), SampleKey(1, 0))
        assert caught.value.__cause__ is error
        assert "\n" not in str(caught.value)

    def test_is_skipped_only_where_it_is_about_data(self):
        dataset = Raising(OSError(errno.EIO, "Input/output error"))
        sample, skipped = load_or_replace(dataset, SampleKey(1, 7), 5, {})
        assert float(sample["lq"][0, 0, 0]) == 3
        assert [note.split(" (")[0] for _, note in skipped] == ["sample 1 of Raising", "sample 2 of Raising"]
        assert load_or_replace(dataset, SampleKey(3, 7), 5, {3: ["a: b"]})[1] == [(3, "a: b")]  # around the end
        with pytest.raises(DataError, match="cannot be loaded, and skip_bad_images is 5"):
            load_or_replace(dataset, SampleKey(1, 7), 5, {0: ["a: b"], 3: ["c: d"]})
        with pytest.raises(RuntimeError, match="sample 1"):
            load_or_replace(Raising(KeyError("gt_path")), SampleKey(1, 7), 5, {})


@pytest.mark.skipif(sys.platform != "linux", reason="names in any bytes")
def test_names_that_are_no_text_are_checked_and_shown(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"lq", b"\xff\n.png")
    (tmp_path / "lq").mkdir()
    Path(os.fsdecode(name)).write_bytes(b"")
    dataset = build_dataset({"type": "SingleImageDataset", "dataroot_lq": str(tmp_path / "lq")})
    (bad,) = check(dataset)
    assert check(dataset) == [bad]
    assert bad.path == f"{tmp_path}/lq/\\udcff\\n.png"
    assert len(fingerprint(dataset)["names"]) == 64

"""Shards on disk and behind a web server of the standard library, against the same images in folders."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.data_scripts import SCRIPTS
from support.web import serving

sys.path.insert(0, str(SCRIPTS))

import create_shards

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.checks.checking import check_images
from basicsr.data.checks.notes import fingerprint
from basicsr.data.storage import ImageRoot, roots_of
from basicsr.files import shards as shard_files
from basicsr.utils.errors import DataError, MachineError, OptionsError

COUNT = 7
SHARDS = {"type": "webdataset"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """HR images, one in a folder below, LR images named by x2, and shards of both: three of them."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(COUNT):
        name = f"{number:03d}" if number else "below/first"
        hr = np.random.default_rng(number).integers(0, 256, (40, 48 + 2 * number, 3), dtype=np.uint8)
        for path, image in ((root / f"HR/{name}.png", hr), (root / f"LR/{name}x2.png", hr[::2, ::2])):
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), image)
    arguments = ["--hr", "HR", "--lr", "LR", "--filename-tmpl", "{}x2", "--output", "shards", "--shard-size", "0.03"]
    run([*arguments], root)
    return root


def run(arguments, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert create_shards.main([*map(str, arguments), "--workers", "1"]) == 0


def options(folders: Path, storage: dict = SHARDS, **changes) -> dict:
    block = {"type": "PairedImageDataset", "name": "x", "scale": 2, "phase": "train", "gt_size": 16}
    where = str(folders / "shards")
    return {**block, "io_backend": storage, "dataroot_gt": where, "dataroot_lq": where, **changes}


def on_disk(folders: Path) -> dict:
    roots = {"dataroot_gt": str(folders / "HR"), "dataroot_lq": str(folders / "LR"), "filename_tmpl": "{}x2"}
    return {**options(folders, {"type": "disk"}), **roots}


@pytest.fixture
def server(folders, monkeypatch, tmp_path):
    """A web server of the shards; each address is new, as an index is read once by a process."""
    monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "cache"))
    with serving(folders) as running:
        running.url += "/shards"
        yield running


def samples(dataset) -> list[dict]:
    return [load_sample(dataset, SampleKey(index, seed=11 * index), pixels=True) for index in range(COUNT)]


def same(one: list[dict], other: list[dict]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("lq", "gt"))


class TestOnDisk:
    def test_shards_are_tar_files_as_webdataset_reads_them(self, folders):
        names = []
        for path in sorted((folders / "shards").glob("*.tar")):
            with tarfile.open(path) as archive:
                for entry in archive:
                    names.append(entry.name)
                    kind = "HR" if ".hr." in entry.name else "LR"
                    key = entry.name.split(".")[0] + ("" if kind == "HR" else "x2")
                    assert archive.extractfile(entry).read() == (folders / kind / f"{key}.png").read_bytes()
        assert len(list((folders / "shards").glob("*.tar"))) == 3
        keys = ["001", "002", "003", "004", "005", "006", "below/first"]
        assert names == [
            f"{key}.{kind}.png" for key in keys for kind in ("hr", "lr")
        ]  # one sample's files side by side

    def test_samples_are_those_of_the_folders(self, folders):
        in_shards, in_folders = build_dataset(options(folders)), build_dataset(on_disk(folders))
        assert same(samples(in_shards), samples(in_folders))
        assert fingerprint(in_shards) == fingerprint(in_folders)  # so a run may go on with either
        assert check_images(in_shards, DatasetOptions(**options(folders)), processes=1) == []

    def test_hr_alone_has_its_lr_made_and_lr_alone_needs_no_hr(self, folders):
        alone = {key: value for key, value in options(folders).items() if key != "dataroot_lq"}
        disk = {key: value for key, value in on_disk(folders).items() if key not in ("dataroot_lq", "filename_tmpl")}
        assert same(samples(build_dataset(alone)), samples(build_dataset(disk)))
        single = {"type": "SingleImageDataset", "dataroot_lq": str(folders / "shards"), "io_backend": SHARDS}
        plain = {"type": "SingleImageDataset", "dataroot_lq": str(folders / "LR"), "io_backend": {"type": "disk"}}
        for one, other in zip(build_dataset(single), build_dataset(plain), strict=True):
            assert torch.equal(one["lq"], other["lq"])

    def test_shards_of_others_are_indexed_whatever_else_they_hold(self, folders, tmp_path):
        image = (folders / "HR/001.png").read_bytes()
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("folder/"))
            long_name = "n" * 150  # which takes a header of its own
            for name in ("x/0001.jpg.json", "x/0001.png", f"{long_name}.png"):
                entry = tarfile.TarInfo(name)
                entry.size = len(image)
                archive.addfile(entry, io.BytesIO(image))
        run(["--index", tmp_path], tmp_path)
        root = roots_of(SHARDS, {"gt": str(tmp_path)})["gt"]
        assert root.names(None) == ["x/0001", long_name]
        assert all(root.content(name) == image for name in root.names(None))

    def test_uncompressed_images_are_read_by_windows(self, tmp_path):
        rng = np.random.default_rng(0)
        (tmp_path / "HR").mkdir()
        for number in range(2):
            assert cv2.imwrite(str(tmp_path / f"HR/{number}.ppm"), rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        run(["--hr", "HR", "--output", "shards"], tmp_path)
        block = {"type": "PairedImageDataset", "scale": 2, "gt_size": 16}
        one = build_dataset({**block, "dataroot_gt": str(tmp_path / "shards"), "io_backend": SHARDS})
        other = build_dataset({**block, "dataroot_gt": str(tmp_path / "HR"), "io_backend": {"type": "disk"}})
        for key in (SampleKey(0, 3), SampleKey(1, 4)):
            assert same([load_sample(one, key)], [load_sample(other, key)])

    def test_several_sets_of_shards(self, folders):
        listed = [str(folders / "shards"), str(folders / "shards/../shards2")]
        (folders / "shards2").exists() or run(
            ["--hr", "HR", "--lr", "LR", "--filename-tmpl", "{}x2", "--output", "shards2"], folders
        )
        dataset = build_dataset(options(folders, dataroot_gt=listed, dataroot_lq=listed))
        assert len(dataset) == 2 * COUNT
        one, other = (load_sample(dataset, SampleKey(index, 5)) for index in (3, COUNT + 3))
        assert torch.equal(one["gt"], other["gt"])

    def test_notes_on_images_lie_in_the_cache_whatever_their_kind_is_called(self, folders, tmp_path, monkeypatch):
        monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "home/cache"))
        run(["--hr", "HR", "--output", tmp_path / "alone"], folders)
        block = options(tmp_path, {**SHARDS, "gt": "../../outside"}, dataroot_gt=str(tmp_path / "alone"))
        del block["dataroot_lq"]
        assert check_images(build_dataset(block), DatasetOptions.model_validate(block)) == []
        assert list((tmp_path / "home/cache").glob("images-*.json"))
        assert not list(tmp_path.glob("*outside*"))


PACK = ["--hr", "HR", "--output", "o"]


def write_black(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


class TestMaking:
    def test_a_stopped_run_goes_on_and_gives_the_same_bytes(self, folders, tmp_path, monkeypatch):
        arguments = ["--hr", folders / "HR", "--output", tmp_path / "s", "--shard-size", "0.01"]
        written = []

        def stopping(path, *given):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(path.name)
            return write(path, *given)

        write = create_shards.write_shard
        monkeypatch.setattr(create_shards, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(arguments, tmp_path)
        assert not (tmp_path / "s/index.json").exists()
        written.clear()
        monkeypatch.setattr(
            create_shards, "write_shard", lambda path, *given: written.append(path.name) or write(path, *given)
        )
        run(arguments, tmp_path)
        assert written[0] == "000002.tar"
        run(["--hr", folders / "HR", "--output", tmp_path / "t", "--shard-size", "0.01"], tmp_path)
        contents = [{p.name: p.read_bytes() for p in (tmp_path / name).glob("[!.]*")} for name in ("s", "t")]
        assert contents[0] == contents[1]
        written.clear()
        run(arguments, tmp_path)
        assert written == []
        run(["--check", tmp_path / "s"], tmp_path)

    @pytest.mark.parametrize(
        "make, arguments, expected",
        [
            (lambda at: None, ["--output", "o"], "give --hr, --lr or both"),
            (lambda at: None, ["--hr", "HR"], "give --output"),
            (lambda at: (at / "HR/bad.png").write_bytes(b"words"), PACK, "1 of 2 images cannot be used"),
            (lambda at: (at / "o/x.tar").write_bytes(b""), PACK, "did not make, as x.tar"),
            (lambda at: [write_black(at / f"HR/{name}.png") for name in ("a_b", "a.b")], PACK, "both be called a_b"),
            (lambda at: None, ["--index", "o"], "holds no shard (*.tar)"),
            (lambda at: None, ["--check", "o"], "has no index.json"),
        ],
    )
    def test_mistakes(self, tmp_path, make, arguments, expected):
        for name in ("HR", "o"):
            (tmp_path / name).mkdir()
        write_black(tmp_path / "HR/good.png")
        make(tmp_path)
        with pytest.raises((DataError, OptionsError)) as error:
            run(arguments, tmp_path)
        assert expected in str(error.value)
        assert not (tmp_path / "o/index.json").exists()


def copy_of(folders: Path, to: Path) -> Path:
    to.mkdir()
    for path in (folders / "shards").iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def fails(root: ImageRoot, expected: str, kind: type = DataError) -> None:
    with pytest.raises(kind) as error:
        for name in root.names(None):
            root.open(name)
    assert re.search(expected, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_in_index(folder: Path, key: str, value: object) -> None:
    document = json.loads((folder / "index.json").read_bytes())
    document["shards"][0][key] = value
    (folder / "index.json").write_text(json.dumps(document))


def change(change_it):
    """A function that changes the bytes of the second shard in a folder."""

    def apply(folder: Path) -> None:
        path = folder / "000001.tar"
        path.write_bytes(change_it(path.read_bytes()))

    return apply


class TestDamage:
    @pytest.mark.parametrize(
        "damage, expected",
        [
            (change(lambda content: content[:9000]), "000001.tar is cut short: 9,000"),
            (change(lambda content: content + b"x"), "000001.tar has changed: "),
            (lambda at: flip(at / "000001.tar", 5000), "000001.tar has changed since its index was made"),
            (lambda at: (at / "000001.tar").unlink(), "cannot read .*000001.tar: No such file"),
            (lambda at: (at / "index.json").unlink(), "has no index.json, by which shards are read; make it anew by"),
            (lambda at: (at / "index.json").write_text("{"), "index.json is no index of shards"),
            (lambda at: replace_in_index(at, "members", {"a.hr.png": [0, 10**9, 1]}), "ends beyond 000000.tar"),
            (lambda at: replace_in_index(at, "name", "../x.tar"), "a shard called ../x.tar"),
            (lambda at: replace_in_index(at, "size", -1), "-1 in the place of a number"),
        ],
    )
    def test_each_is_one_line(self, folders, tmp_path, damage, expected):
        at = copy_of(folders, tmp_path / "s")
        damage(at)
        fails(roots_of(SHARDS, {"gt": str(at)})["gt"], expected)

    def test_a_member_that_is_no_image(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            entry = tarfile.TarInfo("0.hr.png")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"words"))
        run(["--index", tmp_path], tmp_path)
        fails(roots_of(SHARDS, {"gt": str(tmp_path)})["gt"], r"cannot read image .*a.tar \(0.hr.png\)")

    @pytest.mark.parametrize("how", ["cut", "gz"])
    def test_shards_that_cannot_be_indexed(self, folders, tmp_path, how):
        content = (folders / "shards/000000.tar").read_bytes()
        if how == "gz":
            with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
                archive.addfile(tarfile.TarInfo("x"))
        else:
            (tmp_path / "a.tar").write_bytes(content[:9000])
        with pytest.raises(DataError, match="cut short"):
            run(["--index", tmp_path], tmp_path)
        assert not (tmp_path / "index.json").exists()

    def test_kinds_that_are_not_there_and_pairs_without_partner(self, folders, tmp_path):
        fails(
            roots_of({**SHARDS, "gt": "big"}, {"gt": str(folders / "shards")})["gt"], r"there are \*.hr.png, \*.lr.png"
        )
        run(["--hr", folders / "HR", "--output", tmp_path / "hr"], tmp_path)
        (tmp_path / "some").mkdir()
        for number in (1, 2):
            (tmp_path / f"some/{number:03d}.png").write_bytes((folders / f"LR/{number:03d}x2.png").read_bytes())
        run(["--lr", tmp_path / "some", "--output", tmp_path / "lr"], tmp_path)
        with pytest.raises(DataError, match="has no LR image for 003, 004, 005"):
            build_dataset(options(folders, dataroot_gt=str(tmp_path / "hr"), dataroot_lq=str(tmp_path / "lr")))


class TestOverHttp:
    def test_samples_are_those_of_the_folders(self, folders, server):
        remote = {"dataroot_gt": server.url, "dataroot_lq": f"{server.url}/"}
        dataset = build_dataset(options(folders, **remote))
        assert same(samples(dataset), samples(build_dataset(on_disk(folders))))
        block = DatasetOptions(**options(folders, **remote))
        assert check_images(dataset, block, processes=1) == []
        asked = len(server.requests)
        assert check_images(dataset, block, processes=1) == []  # noted, for this index
        assert len(server.requests) == asked

    def test_a_server_that_moves_shards_and_fails_twice_with_every_file(self, folders, server, monkeypatch):
        monkeypatch.setattr(shard_files, "_PAUSES", (0, 0))
        faults = itertools.cycle(["closed", 503, None, "short", "closed", None])
        server.faults = {"000001.tar": "moved", "000002.tar": lambda: next(faults)}
        root = roots_of({**SHARDS, "timeout": 5}, {"gt": server.url})["gt"]
        for name in root.names(None)[:-1]:
            assert root.content(name) == (folders / f"HR/{name}.png").read_bytes()

    @pytest.mark.parametrize(
        "end, fault, expected, kind",
        [
            ("index.json", 404, "index.json cannot be read: the server answers 404", DataError),
            ("000001.tar", 404, "000001.tar cannot be read: the server answers 404", DataError),
            ("000001.tar", "whole", "does not send parts of files", DataError),
            ("000001.tar", "slow", r"000001.tar: it took too long, 3 attempts of 0.1 s", MachineError),
            ("000001.tar", 503, "the server answers 503", MachineError),
            ("000001.tar", "short", "bytes came of ", MachineError),
        ],
    )
    def test_each_fault_is_one_line(self, server, monkeypatch, end, fault, expected, kind):
        monkeypatch.setattr(shard_files, "_PAUSES", (0, 0))
        server.faults = {end: fault}
        fails(roots_of({**SHARDS, "timeout": 0.1}, {"gt": server.url})["gt"], expected, kind)

    @pytest.mark.parametrize("how", ["cut short", "has changed"])
    def test_shards_that_changed_on_the_server(self, folders, server, tmp_path, how):
        at = copy_of(folders, folders / f"other {how}")
        path = at / "000001.tar"
        path.write_bytes(path.read_bytes()[:9000] if how == "cut short" else path.read_bytes() + b"x")
        fails(roots_of(SHARDS, {"gt": server.url.replace("shards", f"other%20{how.replace(' ', '%20')}")})["gt"], how)

    def test_plain_folders_are_no_web_addresses(self):
        with pytest.raises(OptionsError, match="is a web address, and from there io_backend type webdataset reads"):
            roots_of({"type": "disk"}, {"gt": "https://example.org/images"})

    def test_nobody_there(self, monkeypatch):
        monkeypatch.setattr(shard_files, "_PAUSES", (0, 0))
        fails(roots_of(SHARDS, {"gt": "http://127.0.0.1:9/x"})["gt"], "cannot reach|Connection refused", MachineError)

"""scripts/data/prepare.py on tiny archives of the published layouts."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.data_scripts import SCRIPTS

sys.path.insert(0, str(SCRIPTS))

import prepare
from published_sets import SETS, Archive, HrFolder, PublishedSet, Target

from basicsr.data import build_dataset
from basicsr.files.lmdb_databases import read_meta_info
from basicsr.utils.errors import DataError
from basicsr.utils.matlab_functions import imresize_integer

COUNT = 3


def png(seed: int, height: int = 480, width: int = 480) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(coarse, (width, height)))[1].tobytes()


def lr(content: bytes, scale: int) -> bytes:
    """Darker than what `lr` would make, to be told apart."""
    image = imresize_integer(cv2.imdecode(np.frombuffer(content, np.uint8), 1), 1 / scale)
    return cv2.imencode(".png", image // 2)[1].tobytes()


IMAGES = [png(number) for number in range(COUNT)]


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def described(path: Path, targets: tuple[Target, ...], **options) -> Archive:
    content = path.read_bytes()
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **options}
    return Archive(path.name, f"https://example.org/{path.name}", targets, **known)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """DIV2K's layout, with LR images of x2 in an archive of their own; sets to be given to `prepare.main`."""
    monkeypatch.chdir(tmp_path)
    hr = {f"DIV2K_train_HR/{number + 1:04d}.png": content for number, content in enumerate(IMAGES)}
    x2 = {f"DIV2K_train_LR_bicubic/X2/{n + 1:04d}x2.png": lr(content, 2) for n, content in enumerate(IMAGES)}
    official = SETS["DIV2K"].archives
    archives = [
        described(
            write_zip(tmp_path / "downloads" / name, {f"{name[:-4]}/.DS_Store": b"", **files}),
            tuple(Target(t.folder, t.pattern, COUNT, t.scale) for t in given.targets),
            required=given.required,
        )
        for name, files, given in (
            ("DIV2K_train_HR.zip", hr, official[0]),
            ("DIV2K_train_LR_bicubic_X2.zip", x2, official[2]),
        )
    ]
    folder = HrFolder("DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_LR_bicubic", COUNT)
    return {"DIV2K": PublishedSet("https://example.org", tuple(archives), (folder,), (folder.folder,))}


def run(sets, *arguments) -> None:
    assert prepare.main(["DIV2K", "--archives", "downloads", "--workers", "1", *map(str, arguments)], sets) == 0


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in sorted(folder.rglob("[!.]*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_images_lie_where_the_options_expect_them_and_a_rerun_changes_nothing(tiny, tmp_path, capsys):
    run(tiny)
    printed = capsys.readouterr().out
    assert "DIV2K_train_HR.zip: SHA-256 as published" in printed
    assert (
        "in the options: dataroot_gt: datasets/DIV2K/DIV2K_train_HR, dataroot_lq:"
        " datasets/DIV2K/DIV2K_train_LR_bicubic/X2, filename_tmpl: '{}x2'"
    ) in printed
    root = tmp_path / "datasets/DIV2K"
    for number, content in enumerate(IMAGES, start=1):
        assert (root / f"DIV2K_train_HR/{number:04d}.png").read_bytes() == content
        assert (root / f"DIV2K_train_LR_bicubic/X2/{number:04d}x2.png").read_bytes() == lr(content, 2)
        made = cv2.imread(str(root / f"DIV2K_train_LR_bicubic/X3/{number:04d}x3.png"))
        whole = cv2.imdecode(np.frombuffer(content, np.uint8), 1)
        assert np.array_equal(made, imresize_integer(whole, 1 / 3))
    listed = (root / "meta_info_DIV2K_train_HR.txt").read_text().splitlines()
    assert listed == [f"{number:04d}.png (480,480,3)" for number in (1, 2, 3)]
    options = {
        "name": "DIV2K",
        "type": "PairedImageDataset",
        "dataroot_gt": str(root / "DIV2K_train_HR"),
        "dataroot_lq": str(root / "DIV2K_train_LR_bicubic/X2"),
        "filename_tmpl": "{}x2",
        "meta_info_file": str(root / "meta_info_DIV2K_train_HR.txt"),
        "io_backend": {"type": "disk"},
        "scale": 2,
        "phase": "val",
    }
    assert len(build_dataset(options)) == COUNT
    before = tree(tmp_path / "datasets")
    run(tiny)
    assert tree(tmp_path / "datasets") == before


@pytest.mark.parametrize("keep", [True, False])
def test_squares_and_databases(tiny, tmp_path, keep):
    steps = ("--only", *prepare.STEPS, "--scales", 2)
    for _ in range(2):
        run(tiny, *steps, *(["--keep"] if keep else []))
        root = tmp_path / "datasets/DIV2K"
        assert (root / "DIV2K_train_HR_sub").exists() == keep
        assert (root / "DIV2K_train_LR_bicubic/X2_sub").exists() == keep
        hr = read_meta_info(root / "DIV2K_train_HR_sub.lmdb")
        assert hr == {f"{number:04d}_s001": (480, 480, 3) for number in (1, 2, 3)}
        low = read_meta_info(root / "DIV2K_train_LR_bicubic_X2_sub.lmdb")
        assert low == {f"{number:04d}_s001": (240, 240, 3) for number in (1, 2, 3)}
        assert (root / "meta_info_DIV2K_train_HR_sub.txt").read_text().splitlines()[0] == "0001_s001.png (480,480,3)"


def test_an_interrupted_run_goes_on(tiny, tmp_path, monkeypatch):
    """Killed while the second image is written; what was there is not written again."""
    written = []

    def interrupted(path, write):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        return atomically(path, write)

    import archives

    atomically = archives.write_atomically
    run(tiny, "--only", "lists")  # nothing to list yet
    monkeypatch.setattr(archives.Records, "note", lambda *given, **entries: None)
    monkeypatch.setattr(archives, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, "--only", "unpack")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "datasets/DIV2K/DIV2K_train_HR/0001.png"
    before = first.stat().st_mtime_ns
    assert [path.name for path in first.parent.iterdir()] == ["0001.png"]
    run(tiny, "--only", "unpack")
    assert first.stat().st_mtime_ns == before
    assert len(list(first.parent.iterdir())) == COUNT


def fails(sets, expected: str, *arguments) -> None:
    with pytest.raises(DataError) as error:
        run(sets, *arguments)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path("datasets").rglob("*.tmp"))


class TestMistakes:
    def test_missing_archives_are_named_with_their_pages(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "downloads").mkdir()
        fails(SETS, "archives that DIV2K needs are missing (1 of 1): download them (above)")
        printed = capsys.readouterr().out
        assert (
            "DIV2K_train_HR.zip: not there (needed); https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip"
            in printed
        )
        assert "DIV2K_train_LR_bicubic_X3.zip: not there (may be missing)" in printed
        assert list((tmp_path).iterdir()) == [tmp_path / "downloads"]

    def test_an_archive_cut_short_and_one_changed(self, tiny, tmp_path):
        path = tmp_path / "downloads/DIV2K_train_HR.zip"
        content = path.read_bytes()
        path.write_bytes(content[:-10])
        fails(tiny, "cut short; download it again")
        path.write_bytes(b"PK" + bytes([content[2] ^ 1]) + content[3:])
        fails(tiny, "damaged or changed; download it again from https://example.org/DIV2K_train_HR.zip")
        assert not list(tmp_path.rglob("*.png"))

    def test_a_disk_without_room(self, tiny, monkeypatch):
        monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: prepare.shutil._ntuple_diskusage(10, 5, 1000))
        fails(tiny, "DIV2K needs about ")
        assert not Path("datasets").exists()

    def test_an_image_too_few(self, tiny, tmp_path):
        run(tiny)
        (tmp_path / "datasets/DIV2K/DIV2K_train_HR/extra.png").write_bytes(IMAGES[0])
        fails(tiny, "has 4 images, DIV2K_train_HR.zip should have 3; remove what does not belong there")

    def test_a_folder_that_is_none(self, tiny):
        with pytest.raises(DataError, match="--archives nowhere is no folder"):
            prepare.main(["DIV2K", "--archives", "nowhere"], tiny)


NAME = "DIV2K_train_HR/0001.png"


def link(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(NAME)
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)


def bomb(path: Path) -> None:
    """Its list of contents names 200 MB, for 100 bytes."""
    write_zip(path, {NAME: b"x" * 100})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = (200 << 20).to_bytes(4, "little")
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    write_tar(path, {NAME: np.random.default_rng(0).bytes(50000)}, "w:gz")
    path.write_bytes(path.read_bytes()[:30000])


def locked(path: Path) -> None:
    write_zip(path, {NAME: b"x"})
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)


def larger_than_declared(path: Path) -> None:
    write_zip(path, {NAME: b"x" * 100})
    content = path.read_bytes().replace((100).to_bytes(4, "little") * 2, (100).to_bytes(4, "little") + b"\x0a\0\0\0")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda path: write_zip(path, {NAME: b"x", "../../evil.png": b"x"}), "../../evil.png, which leads out"),
        (lambda path: write_tar(path, {"/etc/evil.png": b"x"}), "/etc/evil.png, which leads out"),
        (link, "a link or a device"),
        (bomb, "declares 200.0 MB of files"),
        (locked, "is encrypted"),
        (larger_than_declared, "is damaged or no archive"),
        (lambda path: path.write_bytes(b"words"), "is damaged or no archive"),
        (lambda path: write_zip(path, {"other/0001.png": b"x"}), "holds none of the images"),
        (cut_short, "is damaged"),
    ],
    ids=["zip slip", "absolute", "link", "bomb", "encrypted", "larger", "no archive", "another", "gzip cut short"],
)
def test_hostile_archives_are_refused_in_one_line(tmp_path, monkeypatch, make, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "downloads/DIV2K_train_HR.zip"
    path.parent.mkdir()
    make(path)
    target = Target("DIV2K/DIV2K_train_HR", r"DIV2K_train_HR/(\d{4}\.png)")
    archive = Archive(path.name, "https://example.org", (target,))
    sets = {"DIV2K": PublishedSet("https://example.org", (archive,), ())}
    fails(sets, expected)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("name", ["Flickr2K", "LSDIR", "benchmark"])
def test_the_published_layouts(tmp_path, monkeypatch, name):
    """One image each, named as in the archives; without a public digest the computed one is printed and recorded."""
    monkeypatch.chdir(tmp_path)
    image = png(0, 48, 60)
    archive = SETS[name].archives[0]
    samples = {
        "Flickr2K": {
            "Flickr2K/Flickr2K_HR/000001.png": image,
            "Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png": lr(image, 2),
        },
        "LSDIR": {"shard-00/0001000/0000001.png": image},
        "benchmark": {"benchmark/B100/HR/101085.png": image, "benchmark/B100/LR_bicubic/X2/101085x2.png": lr(image, 2)},
    }[name]
    write_tar(tmp_path / "downloads" / archive.name, samples, "w:gz" if archive.name.endswith("gz") else "w")
    targets = tuple(Target(target.folder, target.pattern, None, target.scale) for target in archive.targets)
    sets = {name: PublishedSet("page", (Archive(archive.name, "url", targets),), SETS[name].folders, SETS[name].train)}
    assert (
        prepare.main([name, "--archives", "downloads", "--incomplete", "--only", "unpack", "--scales", "2"], sets) == 0
    )
    found = sorted(str(path.relative_to("datasets")) for path in Path("datasets").rglob("*.png"))
    assert (
        found
        == {
            "Flickr2K": ["Flickr2K/Flickr2K_HR/000001.png", "Flickr2K/Flickr2K_LR_bicubic/X2/000001x2.png"],
            "LSDIR": ["LSDIR/LSDIR_train_HR/0000001.png"],
            "benchmark": ["benchmark/BSD100/HR/101085.png", "benchmark/BSD100/LR_bicubic/X2/101085x2.png"],
        }[name]
    )
    record = Path(f"datasets/.prepare_{name}.json").read_text()
    assert re.search(r'"checked": "no digest is published; SHA-256 [0-9a-f]{64}"', record)

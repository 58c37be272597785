"""The promise: bad images are found before training, or else while loading; never later, never silently wrong."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.batch import Batch
from basicsr.data.checks.checking import check_images, report
from basicsr.data.checks.inspection import examine
from basicsr.data.data_util import paths_from_meta_info_file
from basicsr.data.loading import TrainLoader
from basicsr.data.sampling import KeySampler
from basicsr.files.file_client import FileClient
from basicsr.files.images import imfrombytes
from basicsr.files.lmdb_databases import read_meta_info
from basicsr.metrics.evaluator import image_name
from basicsr.utils.errors import DataError

COUNT = 500
HR, LR = 16, 8
STORES = ("png", "jpg", "lmdb")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(ending: str, side: int, seed: int = 0, **changes: Any) -> bytes:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    pixels = cv2.resize(coarse, changes.get("size", (side, side)), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(f".{ending}", pixels.astype(changes.get("dtype", np.uint8)))[1].tobytes()


def with_pillow(mode: str, kind: str, side: int, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of few bytes, with right checksums, that announces 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Fault:
    """How to spoil a pair, given its HR and LR bytes and the usual ending; and which of the two is named, and why."""

    spoil: Callable[[bytes, bytes, str], tuple[bytes, bytes]]
    named: str
    reason: str


FAULTS = {
    10: Fault(lambda gt, lq, end: (gt, lq[:-20]), "lq", "the file is truncated"),
    60: Fault(lambda gt, lq, end: (b"", lq), "gt", "the file is empty"),
    61: Fault(
        lambda gt, lq, end: (gt, b"<html>404 Not Found</html>"), "lq", "it is no image, or its format is none of"
    ),
    222: Fault(
        lambda gt, lq, end: (with_pillow("RGB", "GIF", HR), lq), "gt", "it is no image, or its format is none of"
    ),
    333: Fault(lambda gt, lq, end: (gt, with_pillow("CMYK", "JPEG", LR)), "lq", "its pixels are CMYK"),
    334: Fault(lambda gt, lq, end: (gt, with_pillow("1", "PNG", LR)), "lq", "it has 1 bit to a pixel"),
    400: Fault(lambda gt, lq, end: (encoded(end, 8), encoded(end, 4)), "gt", r"smaller than patches of 16 \(LR 8\)"),
    420: Fault(lambda gt, lq, end: (gt, encoded(end, 0, size=(7, 8))), "gt", r"at scale 2 the HR image must be 16x14"),
    430: Fault(lambda gt, lq, end: (encoded("png", HR, dtype=np.uint16), lq), "gt", "has 16 bits to a channel, LR"),
    499: Fault(lambda gt, lq, end: (gt, bomb()), "lq", r"it announces 60000x60000 pixels"),
}


def sound_pair(index: int, ending: str) -> tuple[bytes, bytes]:
    """A good pair; some are unusual."""
    gt, lq = encoded(ending, HR, seed=index), encoded(ending, LR, seed=index)
    if index == 1:
        return with_pillow("L", "PNG", HR), with_pillow("LA", "PNG", LR)
    if index == 2:
        return with_pillow("RGBA", "PNG", HR), lq
    if index == 3:
        return with_pillow("P", "PNG", HR), with_pillow("RGB", "WEBP", LR)
    if index == 4:
        return gt + b"maker's notes", with_pillow("RGB", "TIFF", LR, compression="tiff_lzw")
    if index == 5:
        return with_pillow("RGB", "JPEG", HR, progressive=True), with_pillow("RGB", "BMP", LR) + bytes(3)
    return gt, lq


def write_store(root: Path, kind: str) -> dict[str, Any]:
    """500 pairs, ten of them spoilt; returns the dataset's options."""
    ending = "png" if kind == "lmdb" else kind
    stored: dict[str, dict[str, bytes]] = {"gt": {}, "lq": {}}
    for index in range(COUNT):
        gt, lq = sound_pair(index, ending)
        if index in FAULTS:
            gt, lq = FAULTS[index].spoil(gt, lq, ending)
        stored["gt"][f"{index:04d}"], stored["lq"][f"{index:04d}"] = gt, lq
    roots = {role: root / (f"{role}.lmdb" if kind == "lmdb" else role) for role in stored}
    for role, images in stored.items():
        roots[role].mkdir(parents=True)
        if kind == "lmdb":
            write_database(roots[role], images, HR if role == "gt" else LR)
        else:
            for name, content in images.items():
                (roots[role] / f"{name}.{ending}").write_bytes(content)
    return {
        "type": "PairedImageDataset",
        "dataroot_gt": str(roots["gt"]),
        "dataroot_lq": str(roots["lq"]),
        "io_backend": {"type": "lmdb" if kind == "lmdb" else "disk"},
        "scale": 2,
        "phase": "train",
        "gt_size": 16,
    }


def write_database(folder: Path, images: dict[str, bytes], side: int) -> None:
    folder.mkdir(exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, content in images.items():
            transaction.put(key.encode(), content)
    sizes = {"0400": side // 2}
    lines = [f"{key}.png ({sizes.get(key, side)},{sizes.get(key, side)},3) 1\n" for key in images if key != "0420"]
    lines += [f"0420.png ({side},{side if side == HR else 7},3) 1\n"] if "0420" in images else []
    (folder / "meta_info.txt").write_text("".join(lines))


@pytest.fixture(scope="module", params=STORES)
def store(request, tmp_path_factory) -> dict[str, Any]:
    return write_store(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Any]:
    return write_store(tmp_path_factory.mktemp("folders"), "png")


def options(check: str = "headers") -> Any:
    return SimpleNamespace(check_images=check, name="tiny")


def stem(path: str) -> str:
    """The number in a file's or a key's name."""
    found = re.search(r"(\d{4})(?:\.\w+|'\))$", path)
    assert found is not None, path
    return found[1]


@pytest.mark.parametrize("level", ["headers", "full"])
def test_every_bad_image_is_found_at_the_start_and_no_good_one_accused(store, level):
    bad = check_images(build_dataset(store), options(level), rank=0, world_size=1, processes=1)
    assert [image.index for image in bad] == sorted(FAULTS)
    for image in bad:
        fault = FAULTS[image.index]
        assert re.search(fault.reason, image.reason), image
        assert int(stem(image.path)) == image.index
        assert image.path.startswith(store[f"dataroot_{fault.named}"])
        assert "\n" not in str(image)


def test_every_bad_image_is_found_when_it_is_loaded_unchecked(store):
    dataset = build_dataset(store)
    assert check_images(dataset, options("none"), rank=0, world_size=1) == []
    bad = []
    for index in range(COUNT):
        try:
            load_sample(dataset, SampleKey(index, seed=index))
        except DataError as error:
            bad.append(index)
            root = store[f"dataroot_{FAULTS[index].named}"]
            assert re.search(rf"{re.escape(root)}.*{index:04d}.*{FAULTS[index].reason}", str(error)), error
            assert "\n" not in str(error)
    assert bad == sorted(FAULTS)


def test_ranks_share_the_work_and_the_report_lists_all(folders):
    dataset = build_dataset(folders)
    found = [check_images(dataset, options(), rank=rank, world_size=3) for rank in range(3)]
    assert all(image.index % 3 == rank for rank, images in enumerate(found) for image in images)
    together = sorted(image for images in found for image in images)
    assert together == check_images(dataset, options(), rank=0, world_size=1)
    first, *lines, advice = report(together, COUNT, "tiny").splitlines()
    assert first == "10 of 500 images of dataset tiny cannot be used:"
    assert lines == [f"  {image.path}: {image.reason}" for image in together]
    assert "skip_bad_images" in advice


def batches(
    store: dict[str, Any], *, workers: int = 0, start: int = 0, limit: int = 20, known: Any = ()
) -> list[Batch]:
    dataset = build_dataset(store)
    sampler = KeySampler(num_samples=COUNT, batch_size=25, seed=3, start_iteration=start, total_iterations=22)
    loader = TrainLoader(dataset, sampler, num_workers=workers, skip_bad_images=limit)
    loader.leave_out((image.index, str(image)) for image in known)
    return [batch for (batch,) in loader]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.lq, other.lq) and torch.equal(batch.gt, other.gt)
        assert (batch.gt_paths, batch.skipped) == (other.gt_paths, other.skipped)
        assert torch.equal(batch.seeds, other.seeds)


@pytest.fixture(scope="module")
def expected(store) -> list[Batch]:
    """The batches of a store, loaded in this process from the beginning."""
    return batches(store)


class TestSkipping:
    def test_takes_the_next_good_image_with_the_seed_of_the_position(self, folders):
        found = batches(folders)
        sampler = KeySampler(num_samples=COUNT, batch_size=25, seed=3, total_iterations=22)
        dataset = build_dataset(folders)
        skipped: set[tuple[int, str]] = set()
        for batch, keys in zip((batch.to("cpu") for batch in found), sampler, strict=True):
            for location, key in enumerate(keys):
                index = key.index
                while index in FAULTS:
                    index = (index + 1) % COUNT
                expected = load_sample(dataset, SampleKey(index, key.seed))
                assert torch.equal(batch.gt[location], expected["gt"])
                assert batch.gt_paths[location] == expected["gt_path"]
            wanted = {step for key in keys for step in FAULTS if key.index == step}
            wanted |= {61 for key in keys if key.index == 60} | {334 for key in keys if key.index == 333}
            assert {int(stem(note.split(": ")[0])) for _, note in batch.skipped} == wanted
            skipped |= set(batch.skipped)
        assert len(skipped) == len(FAULTS)

    def test_depends_neither_on_workers_nor_on_where_a_run_resumes(self, store, expected):
        for workers in (1, 2):
            assert_same(batches(store, workers=workers), expected)
        assert_same(batches(store, start=7), expected[7:])

    def test_takes_the_same_images_whether_they_were_known_or_not(self, store, expected):
        known = check_images(build_dataset(store), options(), rank=0, world_size=1)
        assert_same(batches(store, known=known), expected)

    def test_is_off_by_default_and_ends_where_more_are_bad_in_a_row(self, folders):
        with pytest.raises(DataError, match="cannot read image"):
            batches(folders, limit=0)
        with pytest.raises(DataError, match=r"sample 333 .*0333\.png.* and the 1 after it .* skip_bad_images is 1"):
            batches(folders, limit=1)


class TestCache:
    def test_what_has_not_changed_is_not_read_again(self, tmp_path):
        store = write_store(tmp_path, "png")
        dataset = build_dataset(store)
        first = check_images(dataset, options(), rank=0, world_size=1)
        good = tmp_path / "lq" / "0100.png"
        status = good.stat()
        good.write_bytes(bytes(status.st_size))
        os.utime(good, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert check_images(dataset, options(), rank=0, world_size=1) == first
        os.utime(good, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert [image.index for image in check_images(dataset, options(), rank=0, world_size=1)] == sorted(
            [*FAULTS, 100]
        )

    def test_decoding_does_not_rest_on_headers_alone(self, tmp_path):
        store = write_store(tmp_path, "png")
        path = tmp_path / "gt" / "0100.png"
        content = bytearray(path.read_bytes())
        content[60] ^= 1  # inside the compressed pixels
        path.write_bytes(content)
        dataset = build_dataset(store)
        assert 100 not in [image.index for image in check_images(dataset, options(), rank=0, world_size=1)]
        full = check_images(dataset, options("full"), rank=0, world_size=1, processes=2)
        assert [image.reason for image in full if image.index == 100] == [
            "the file is damaged (wrong checksum in the PNG chunk at byte 33); copy or download the file again"
        ]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "a.lmdb"
    write_database(folder, {f"{index:04d}": bytes(100 if index % 8 else 5000) for index in range(80)}, HR)
    return folder


class TestDamagedDatabases:
    def test_a_truncated_one_is_told_before_it_is_mapped(self, database, tmp_path):
        whole = (database / "data.mdb").read_bytes()
        for part in (0, 100, len(whole) - 1):
            folder = tmp_path / f"{part}.lmdb"
            folder.mkdir()
            (folder / "data.mdb").write_bytes(whole[:part])
            with pytest.raises(DataError, match=r"cannot open LMDB database .*data\.mdb is truncated") as caught:
                FileClient("lmdb", db_paths=str(folder)).get("0000")
            assert "\n" not in str(caught.value)

    def test_a_damaged_page_is_told_when_the_dataset_is_built(self, database, tmp_path):
        folder = tmp_path / "a.lmdb"
        write_database(folder, {f"{index:04d}": bytes(100) for index in range(200)}, HR)
        content = bytearray((folder / "data.mdb").read_bytes())
        (root,) = struct.unpack_from("<Q", content, content_of_newest_meta(content) + 88)
        content[root * 4096] ^= 1  # the root page's own number
        (folder / "data.mdb").write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot open LMDB database .*data\.mdb is damaged \(page {root}\)"):
            build_dataset({"type": "SingleImageDataset", "dataroot_lq": str(folder), "io_backend": {"type": "lmdb"}})


def content_of_newest_meta(pages: bytes) -> int:
    """Where the content of the meta page of the last transaction begins."""
    return max((16, 4096 + 16), key=lambda start: struct.unpack_from("<Q", pages, start + 128))


BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WHOLE = {
    "png": encoded("png", HR),
    "jpg": encoded("jpg", HR),
    "jpg progressive": with_pillow("RGB", "JPEG", HR, progressive=True),
    "bmp": encoded("bmp", HR),
    "tiff": with_pillow("RGB", "TIFF", HR),
    "tiff lzw": with_pillow("RGB", "TIFF", HR, compression="tiff_lzw"),
    "webp": encoded("webp", HR),
    "webp lossless": with_pillow("RGB", "WEBP", HR, lossless=True),
    "ppm": encoded("ppm", HR),
}
PIXELS = {name: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for name, content in WHOLE.items()}


def read_or_refuse(content: bytes, path: Path) -> np.ndarray | None:
    """The pixels, or None where they were refused; neither check nor reading may do anything else."""
    path.write_bytes(content)
    finding = examine(str(path))
    assert finding.fault is None or "\n" not in finding.fault
    try:
        pixels = imfrombytes(content)
    except DataError as error:
        assert "\n" not in str(error)
        return None
    assert finding.fault is None, "what can be read must not be accused"
    assert finding.header.size == pixels.shape[:2] and finding.header.depth == pixels.itemsize * 8
    return pixels


class TestAnyBytes:
    @BOUNDED
    @given(st.sampled_from(sorted(WHOLE)), st.data())
    def test_of_a_file_cut_short_give_the_whole_image_or_an_error(self, tmp_path, name, data):
        content = WHOLE[name]
        cut = data.draw(st.integers(0, len(content) - 1))
        pixels = read_or_refuse(content[:cut], tmp_path / "a")
        assert pixels is None or np.array_equal(pixels, PIXELS[name])

    @BOUNDED
    @given(st.sampled_from(sorted(WHOLE)), st.data())
    def test_changed_anywhere_give_an_image_or_an_error(self, tmp_path, name, data):
        content = bytearray(WHOLE[name])
        near = st.integers(0, min(len(content), 80) - 1) | st.integers(0, len(content) - 1)
        for location, value in data.draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=6)):
            content[location] = value
        pixels = read_or_refuse(bytes(content), tmp_path / "a")
        if pixels is not None:
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype in (np.uint8, np.uint16)
            if name == "png":  # whose checksums show every change
                np.testing.assert_array_equal(pixels, PIXELS[name])

    @BOUNDED
    @given(st.binary(max_size=200), st.sampled_from([content[:12] for content in WHOLE.values()] + [b""]))
    def test_after_any_beginning_give_an_error(self, tmp_path, content, beginning):
        read_or_refuse(beginning + content, tmp_path / "a")


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "sub", "out", "b.png", "a.png", "C:", "\0", "\n", "\x1b[2J", "~", "\u2028"]),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of images, with a link that leads out of it, and an image beside it."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "root"
    (root / "sub").mkdir(parents=True)
    for path in (root / "a.png", root / "sub" / "b.png", outside / "b.png", outside / "a.png"):
        path.write_bytes(b"")
    (root / "out").symlink_to(outside)
    return root


class TestAnyMetaFile:
    def assert_below(self, root: Path, content: bytes) -> None:
        file = root.parent / "meta.txt"
        file.write_bytes(content)
        try:
            paths = paths_from_meta_info_file(str(root), str(file))
        except DataError as error:
            assert "\n" not in str(error) and str(error).isprintable()
            return
        assert paths and all(Path(path).resolve().is_relative_to(root.resolve()) for path in paths)

    @BOUNDED
    @given(st.lists(st.builds("/".join, NAMES) | st.builds("\\".join, NAMES), max_size=3))
    def test_names_images_below_the_folder_or_is_refused(self, root, lines):
        self.assert_below(root, "\n".join(lines).encode())

    @BOUNDED
    @given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
    def test_of_any_bytes_is_a_list_or_is_refused(self, root, content):
        self.assert_below(root, content)

    def test_may_name_what_a_listing_shows_but_nothing_behind_links_below(self, root):
        linked = root / "linked.png"
        if not linked.is_symlink():
            linked.symlink_to(root.parent / "a.png")
        file = root.parent / "links.txt"
        file.write_text("linked.png\nsub/b.png\n")
        assert len(paths_from_meta_info_file(str(root), str(file))) == 2
        file.write_text("out/b.png\n")
        with pytest.raises(DataError, match=r"names out/b\.png, which leads out of .*root through a symbolic link"):
            paths_from_meta_info_file(str(root), str(file))
        linked.unlink()

    @BOUNDED
    @given(st.lists(st.builds("/".join, NAMES), min_size=1, max_size=3))
    def test_of_a_database_gives_keys_under_which_results_stay_in_their_folder(self, tmp_path, names):
        (tmp_path / "meta_info.txt").write_bytes("".join(f"{name} (2,2,3) 1\n" for name in names).encode())
        try:
            keys = read_meta_info(tmp_path)
        except DataError as error:
            assert "\n" not in str(error) and str(error).isprintable()
            return
        for key in keys:
            name = image_name(key)
            assert name and (tmp_path / name / f"{name}.png").resolve().is_relative_to(tmp_path.resolve())

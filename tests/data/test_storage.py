"""Windows of uncompressed images against the same pixels in PNG files, decoded whole."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr.data import build_dataset
from basicsr.data.bands_storage import BandFolder
from basicsr.data.checks.inspection import examine
from basicsr.data.image_sets import SeveralRoots
from basicsr.data.shard_storage import ShardSet
from basicsr.data.storage import DecodedImage, ImageRoot, LmdbDatabase, PpmImage, Window, roots_of
from basicsr.files.images import encode_png, encode_ppm, imfrombytes
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import STORAGE_REGISTRY

HEIGHT, WIDTH = 13, 7
WINDOWS = [
    None,
    Window(0, 0, HEIGHT, WIDTH),
    Window(0, 0, 1, 1),
    Window(HEIGHT - 1, WIDTH - 1, 1, 1),
    Window(3, 2, 5, 4),
    Window(HEIGHT - 4, 0, 4, 3),
    Window(0, 0, 20, 20),  # larger than the image, as small images are asked for before they are extended
    Window(10, 5, 20, 20),
]


def picture(dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, 3), dtype=dtype)


def on_disk(folder: Path, content: bytes, name: str = "a.ppm") -> tuple[ImageRoot, str]:
    (folder / name).write_bytes(content)
    return ImageRoot(str(folder)), str(folder / name)


def in_database(folder: Path, content: bytes) -> tuple[ImageRoot, str]:
    with LmdbMaker(folder / "a.lmdb", compress_level=0, ending=".ppm") as maker:
        maker.put(b"before", "0", (1, 1, 3))
        maker.put(content, "a", (HEIGHT, WIDTH, 3))
    return LmdbDatabase(str(folder / "a.lmdb")), "a"


STORED = pytest.mark.parametrize("store, kind", [(on_disk, ImageRoot), (in_database, LmdbDatabase)])


@STORED
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_are_those_of_the_image_decoded_whole(store, kind, dtype, tmp_path):
    pixels = picture(dtype)
    whole = DecodedImage(imfrombytes(encode_png(pixels, 1)))
    storage, path = store(tmp_path, encode_ppm(pixels))
    image = storage.open(path)
    assert isinstance(storage, kind) and isinstance(image, PpmImage)
    assert (image.size, image.depth) == (whole.size, whole.depth) == ((HEIGHT, WIDTH), 8 * pixels.itemsize)
    for window in WINDOWS:
        found, expected = image.read(window), whole.read(window)
        assert found.dtype == dtype and found.dtype.isnative
        np.testing.assert_array_equal(found, expected)
        assert found[..., ::-1].flags.c_contiguous  # a copy: nothing of the file or the database is kept


def test_every_window_of_a_small_image(tmp_path):
    pixels = picture(np.uint16)
    storage, path = in_database(tmp_path, encode_ppm(pixels))
    image = storage.open(path)
    for top in range(HEIGHT):
        for left in range(WIDTH):
            for height, width in ((1, 1), (2, 3), (HEIGHT - top, WIDTH - left)):
                expected = pixels[top : top + height, left : left + width]
                np.testing.assert_array_equal(image.read(Window(top, left, height, width)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opencv_reads_what_is_written(dtype):
    pixels = picture(dtype)
    decoded = cv2.imdecode(np.frombuffer(encode_ppm(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, pixels)


@STORED
@pytest.mark.parametrize(
    "header",
    [b"P6 7 13 255\n", b"P6\t\t7\r\n013\v255\f", b"P6\n7\n13\n255\r", b"P6\n# by a camera\n7 13\n255\n"],
)
def test_headers_of_other_writers_are_taken(store, kind, header, tmp_path):
    pixels = picture(np.uint8)
    storage, path = store(tmp_path, header + pixels[..., ::-1].tobytes() + b"what follows does not matter")
    assert isinstance(storage.open(path), PpmImage)
    np.testing.assert_array_equal(storage.open(path).read(Window(2, 1, 4, 5)), pixels[2:6, 1:6])


@STORED
@pytest.mark.parametrize(
    "content",
    [
        b"P5 7 13 255\n" + bytes(HEIGHT * WIDTH),
        b"P3 2 1 255\n" + b"7 " * 6,
        encode_png(picture(np.uint8), 1),
        cv2.imencode(".bmp", picture(np.uint8))[1].tobytes(),
    ],
    ids=["gray", "text", "png", "bmp"],
)
def test_others_are_decoded_whole(store, kind, content, tmp_path):
    storage, path = store(tmp_path, content)
    image = storage.open(path)
    assert isinstance(image, DecodedImage)
    np.testing.assert_array_equal(image.read(), imfrombytes(content))


def test_an_uncompressed_file_of_another_name_is_decoded_whole(tmp_path):
    storage, path = on_disk(tmp_path, encode_ppm(picture(np.uint8)), "a.png")
    np.testing.assert_array_equal(storage.open(path).read(), picture(np.uint8))


WHOLE = encode_ppm(picture(np.uint8))
REFUSED = {
    "empty": (b"", "the file is empty"),
    "its name alone": (b"P6", "it is no image"),
    "cut in the header": (b"P6\n7 13\n2", r"its largest value is 2"),
    "cut before its last number": (b"P6\n7 13\n", r"the file is truncated or damaged \(its PPM header"),
    "without pixels": (b"P6\n7 13\n255\n", r"the file is truncated \(12 bytes of 285\)"),
    "a byte short": (WHOLE[:-1], r"the file is truncated \(284 bytes of 285\)"),
    "16 bits announced, 8 there": (WHOLE.replace(b"255", b"65535", 1), r"the file is truncated \(287 bytes of 560\)"),
    "no width": (b"P6\n0 13\n255\n" + bytes(99), "its header announces 13x0 pixels"),
    "negative": (b"P6\n-7 13\n255\n" + bytes(300), "the file is truncated or damaged"),
    "a bomb": (b"P6 99999 99999 255\n" + bytes(99), "it announces 99999x99999 pixels"),
    "a product beyond 64 bits": (b"P6 999999999 999999999 65535\n", "it announces 999999999x999999999 pixels"),
    "a number of many digits": (b"P6 " + b"9" * 5000 + b" 1 255\n", "the file is truncated or damaged"),
    "a hundred levels": (b"P6 7 13 100\n" + bytes(300), "its largest value is 100, allowed are 255 or 65535; convert"),
    "10 bits": (b"P6 7 13 1023\n" + bytes(600), "its largest value is 1023, allowed are 255 or 65535; convert it"),
    "no levels": (b"P6 7 13 0\n" + bytes(300), "its largest value is 0, allowed are 255 or 65535; convert it"),
}


@STORED
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_damaged_and_hostile_files_are_refused_in_one_line_before_training_and_in_it(store, kind, name, tmp_path):
    content, reason = REFUSED[name]
    storage, path = store(tmp_path, content)
    with pytest.raises(DataError, match=rf"^cannot read image .*: {reason}") as caught:
        storage.open(path)
    assert "\n" not in str(caught.value)
    fault = examine(path, storage).fault
    assert fault is not None and fault in str(caught.value)


@STORED
def test_every_truncation_is_refused(store, kind, tmp_path):
    if kind is LmdbDatabase:
        with LmdbMaker(tmp_path / "all.lmdb") as maker:
            for length in range(1, len(WHOLE)):
                maker.put(WHOLE[:length], str(length), (HEIGHT, WIDTH, 3))
        storage = LmdbDatabase(str(tmp_path / "all.lmdb"))
    for length in range(1, len(WHOLE)):
        path = str(length)
        if kind is ImageRoot:
            storage, path = on_disk(tmp_path, WHOLE[:length])
        with pytest.raises(DataError):
            storage.open(path)


def test_a_file_cut_short_while_it_is_in_use_is_told(tmp_path):
    storage, path = on_disk(tmp_path, WHOLE)
    image = storage.open(path)
    os.truncate(path, len(WHOLE) - 1)
    np.testing.assert_array_equal(image.read(Window(0, 0, 5, 5)), picture(np.uint8)[:5, :5])
    with pytest.raises(DataError, match=r"cannot read image .*a\.ppm: it was cut short"):
        image.read(Window(HEIGHT - 1, 0, 1, 1))


def test_missing_files_and_keys_are_named(tmp_path):
    storage, _ = on_disk(tmp_path, WHOLE)
    for name in ("b.ppm", "b\0.ppm"):
        with pytest.raises(DataError, match=r"cannot read .*b.*\.ppm: .*; check the path"):
            storage.open(str(tmp_path / name))
    storage, _ = in_database(tmp_path, WHOLE)
    with pytest.raises(DataError, match=r"has no key 'b'"):
        storage.open("b")


def test_files_are_closed_and_databases_left(tmp_path):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    storage, path = on_disk(tmp_path, WHOLE)
    (tmp_path / "short.ppm").write_bytes(WHOLE[:-1])
    before = descriptors()
    for _ in range(5):
        storage.open(path).read(Window(1, 1, 2, 2))
        with pytest.raises(DataError):
            storage.open(str(tmp_path / "short.ppm"))
    assert descriptors() == before


def sum_in_child(image: PpmImage, queue: multiprocessing.Queue) -> None:
    queue.put(int(image.read(Window(1, 1, 3, 3)).sum()))


def test_images_opened_before_a_fork_are_read_in_the_child_and_then_in_the_parent(tmp_path):
    context = multiprocessing.get_context("fork")
    for store in (on_disk, in_database):
        storage, path = store(tmp_path, WHOLE)
        image, queue = storage.open(path), context.Queue()
        child = context.Process(target=sum_in_child, args=(image, queue))
        child.start()
        assert queue.get(timeout=60) == int(picture(np.uint8)[1:4, 1:4].sum())
        child.join()
        np.testing.assert_array_equal(image.read(), picture(np.uint8))


def test_the_folders_of_a_dataset_are_not_options_of_its_storage(tmp_path):
    on_disk(tmp_path, WHOLE, "a.ppm")
    with pytest.raises(OptionsError, match="io_backend has no option path; the folders are dataroot_gt"):
        roots_of({"type": "disk", "path": str(tmp_path)}, {"lq": str(tmp_path / "nowhere")})


def test_another_kind_of_storage_is_one_registered_function(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Reversed(ImageRoot):
        shown: int = 0

        def names(self, meta_info_file: str | None) -> list[str]:
            return super().names(meta_info_file)[::-1][: self.shown]

    def backwards(path: str, shown: int = 2) -> ImageRoot:
        return Reversed(path, shown)

    monkeypatch.setitem(STORAGE_REGISTRY._members, "backwards", backwards)
    for name in ("a.ppm", "b.ppm", "c.ppm"):
        on_disk(tmp_path, WHOLE, name)
    block = {"type": "SingleImageDataset", "dataroot_lq": str(tmp_path)}
    dataset = build_dataset({**block, "io_backend": {"type": "backwards", "shown": 1}})
    assert [sample["lq_path"] for sample in dataset] == [str(tmp_path / "c.ppm")]
    with pytest.raises(OptionsError, match=r"io_backend\.show: unknown key \(did you mean 'shown'\?\); allowed: shown"):
        build_dataset({**block, "io_backend": {"type": "backwards", "show": 1}})


ONLY_OF_PARTS = {"names", "pairs", "takes_list", "suffixes", "names_are_paths", "may_have", "folder", "below"}


def test_no_storage_hides_what_all_of_them_have_and_several_as_one_pass_all_on():
    """A field called `kind` of one storage once named the notes of checks by what the options said."""
    members = {name for name in vars(ImageRoot) if not name.startswith("_")} - {"path"}
    for kind in (LmdbDatabase, ShardSet, BandFolder, SeveralRoots):
        assert not members & {field.name for field in fields(kind)}
    assert members - set(vars(SeveralRoots)) == ONLY_OF_PARTS

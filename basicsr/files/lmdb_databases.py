"""Writing LMDB databases in BasicSR's layout.

A database is a folder `NAME.lmdb` of `data.mdb`, `lock.mdb` and `meta_info.txt`. Its keys are the images'
names without ending, its values PNG files, or uncompressed PPM files. Each line of `meta_info.txt` holds name, shape
and PNG compression level, 0 for none: `0001_s001.png (480,480,3) 1`, `0001_s001.ppm (480,480,3) 0`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr.files.name_lists import leaves_folder, read_lines
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.text import printable

_META_LINE = re.compile(
    r"(?P<name>.+?) \((?P<height>[0-9]{1,9}),(?P<width>[0-9]{1,9}),(?P<channels>[0-9]{1,9})\)(?: (?P<level>[0-9]+))?"
)
_LONGEST_KEY = 511
_AT_ONCE = 1 << 28  # bytes to a transaction, which are in memory until it ends


class LmdbMaker:
    """Writes one database; nothing appears under its name before all is written.

    Used as a context manager, it completes the database, or removes it after an exception.

    Args:
        lmdb_path: the folder to make; its name ends in `.lmdb`.
        map_size: upper limit of the database in bytes. No space is taken in advance.
        batch: images to a transaction, fewer where they are large.
        compress_level: PNG level to note in `meta_info.txt`.
        ending: of the names to note there, '.png' or '.ppm'.

    Raises:
        DataError: the path does not end in `.lmdb`, exists already or cannot be written.
    """

    def __init__(
        self,
        lmdb_path: str | os.PathLike[str],
        map_size: int = 1024**4,
        batch: int = 5000,
        compress_level: int = 1,
        ending: str = ".png",
    ) -> None:
        self.path = Path(lmdb_path)
        if self.path.suffix != ".lmdb":
            raise DataError(f"the name of an LMDB database must end in .lmdb, got {self.path}")
        if os.path.lexists(self.path):
            raise DataError(f"{self.path} exists already; remove it to create it anew")
        try:
            import lmdb
        except ImportError as error:
            raise MachineError("writing an LMDB database needs the package lmdb; install it with pip") from error
        self.batch = batch
        self.compress_level = compress_level
        self.ending = ending
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._failures = OSError, lmdb.Error
        shutil.rmtree(self._partial, ignore_errors=True)
        with self._told():
            self._partial.mkdir(parents=True)
            self._environment = lmdb.open(str(self._partial), map_size=map_size)
            self._transaction = self._environment.begin(write=True)
        self._lines: list[str] = []
        self._bytes = 0

    def put(self, img_byte: bytes, key: str, img_shape: tuple[int, int, int]) -> None:
        """Adds an image.

        Args:
            img_byte: the bytes of a PNG or PPM file.
            key: the image's name without ending.
            img_shape: height, width, channels.

        Raises:
            DataError: the key is too long or has been written before, or the disk is full.
        """
        encoded = key.encode("utf-8")
        if len(encoded) > _LONGEST_KEY:
            raise DataError(f"the name '{key[:40]}...' is longer than {_LONGEST_KEY} bytes, LMDB's limit; rename it")
        with self._told():
            new = self._transaction.put(encoded, img_byte, overwrite=False)
        if not new:
            raise DataError(f"two images are called '{key}'; rename one")
        height, width, channels = img_shape
        self._lines.append(f"{key}{self.ending} ({height},{width},{channels}) {self.compress_level}\n")
        self._bytes += len(img_byte)
        if len(self._lines) % self.batch == 0 or self._bytes >= _AT_ONCE:
            with self._told():
                self._transaction.commit()
                self._transaction, self._bytes = self._environment.begin(write=True), 0

    def close(self) -> None:
        """Completes the database and gives it its name; raises DataError where that is not possible."""
        try:
            with self._told():
                self._transaction.commit()
                self._environment.close()
                (self._partial / "meta_info.txt").write_text("".join(self._lines), encoding="utf-8")
                os.replace(self._partial, self.path)
        except DataError:
            self.discard()
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"cannot write {self.path}: {reason}; make room, or give another path") from error

    def discard(self) -> None:
        """Removes what was written."""
        self._transaction.abort()
        self._environment.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> LmdbMaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


def read_meta_info(folder: str | os.PathLike[str]) -> dict[str, tuple[int, int, int]]:
    """Keys of a database, sorted, with height, width and channels of the images, from its `meta_info.txt`.

    Results are saved under the keys, so keys are names as `name_lists.leaves_folder` allows them: `0001` or
    `folder/0001`, never `..` or `a/../../b`.

    Raises:
        DataError: the file is missing, empty or no text, a line of it is not as BasicSR writes it, or a key is named
            twice, too long for LMDB, or not such a name.
    """
    path = Path(folder) / "meta_info.txt"
    entries: dict[str, tuple[int, int, int]] = {}
    for number, line in read_lines(path, ""):
        found = _META_LINE.fullmatch(line)
        if found is None:
            raise DataError(
                f"line {number} of {path} must look like 'name.png (h,w,c) 1', got '{printable(line[:80])}'"
            )
        key = os.path.splitext(found["name"])[0]
        if leaves_folder(key) or len(key.encode("utf-8")) > _LONGEST_KEY:
            raise DataError(
                f"line {number} of {path} names '{printable(key[:80])}', which cannot be a key: results are saved under"
                f" it, so it must be a relative name without '..' of at most {_LONGEST_KEY} bytes"
            )
        if key in entries:
            raise DataError(f"line {number} of {path} names '{printable(key)}' again; create the LMDB database again")
        entries[key] = _shape(found)
    if not entries:
        raise DataError(f"{path} lists no image; create the LMDB database again")
    return dict(sorted(entries.items()))


def _shape(found: re.Match[str]) -> tuple[int, int, int]:
    return int(found["height"]), int(found["width"]), int(found["channels"])


def encode_png(img: Any, compress_level: int) -> bytes:
    """An image, (H, W, 3) uint8 or uint16 BGR, as the bytes of a PNG file."""
    import cv2

    return cv2.imencode(".png", img, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])[1].tobytes()

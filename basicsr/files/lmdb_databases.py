"""LMDB databases in BasicSR's layout: written, checked and read.

A database is a folder `NAME.lmdb` of `data.mdb`, `lock.mdb` and `meta_info.txt`. Its keys are the images'
names without ending, its values PNG files, or uncompressed PPM files. Each line of `meta_info.txt` holds name, shape
and PNG compression level, 0 for none: `0001_s001.png (480,480,3) 1`, `0001_s001.ppm (480,480,3) 0`.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from basicsr.files.regular_files import leaves_folder, read_lines
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.text import printable

_META_LINE = re.compile(r"(?P<name>.+?) \(([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})\)(?: [0-9]+)?")
_LONGEST_KEY = 511
_AT_ONCE = 1 << 28  # bytes to a transaction, which are in memory until it ends

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16  # bytes before a page's content
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_DIRTY = 0x10
_IN_OVERFLOW = 0x01
_NO_PAGE = 2**64 - 1
_DEEPEST = 32
_PAGE_SIZES = {2**power for power in range(9, 17)}

_environments: dict[str, Any] = {}  # by real path
_known: dict[str, Any] = {}  # the same by absolute paths as they are given: resolving links takes longer than reading
_opening = threading.Lock()


class LmdbMaker:
    """Writes one database; as a context manager, it completes it or removes it after an exception.

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
        lmdb = _lmdb("writing")
        self.batch = batch
        self.compress_level = compress_level
        self.ending = ending
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._failures = OSError, lmdb.Error
        shutil.rmtree(self._partial, ignore_errors=True)
        with self._writing():
            self._partial.mkdir(parents=True)
            self._environment = lmdb.open(str(self._partial), map_size=map_size)
            self._transaction = self._environment.begin(write=True)
        self._lines: list[str] = []
        self._bytes = 0

    def put(self, img_byte: bytes, key: str, img_shape: tuple[int, int, int]) -> None:
        """Adds a PNG or PPM file under the image's name without ending; shape (H, W, C). Raises DataError."""
        encoded = key.encode("utf-8")
        if len(encoded) > _LONGEST_KEY:
            raise DataError(f"the name '{key[:40]}...' is longer than {_LONGEST_KEY} bytes, LMDB's limit; rename it")
        with self._writing():
            new = self._transaction.put(encoded, img_byte, overwrite=False)
        if not new:
            raise DataError(f"two images are called '{key}'; rename one")
        height, width, channels = img_shape
        self._lines.append(f"{key}{self.ending} ({height},{width},{channels}) {self.compress_level}\n")
        self._bytes += len(img_byte)
        if len(self._lines) % self.batch == 0 or self._bytes >= _AT_ONCE:
            with self._writing():
                self._transaction.commit()
                self._transaction, self._bytes = self._environment.begin(write=True), 0

    def close(self) -> None:
        """Completes the database and gives it its name; raises DataError where that fails."""
        try:
            with self._writing():
                self._transaction.commit()
                self._environment.close()
                (self._partial / "meta_info.txt").write_text("".join(self._lines), encoding="utf-8")
                os.replace(self._partial, self.path)
        except DataError:
            self.discard()
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
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
    """Keys in `meta_info.txt`, sorted, with height, width and channels; raises DataError for any line but BasicSR's."""
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
        entries[key] = int(found[2]), int(found[3]), int(found[4])
    if not entries:
        raise DataError(f"{path} lists no image; create the LMDB database again")
    return dict(sorted(entries.items()))


@contextmanager
def stored_value(path: str, key: str, readahead: bool = False) -> Iterator[memoryview]:
    """A database's value of a key, in its own memory: not copied, and gone after the block; raises DataError.

    LMDB allows one opening of a database in a process, and none across a fork. It is read-only and takes no lock.
    """
    environment = _environment(path, readahead)
    lmdb = _lmdb("reading")
    try:
        with environment.begin(write=False, buffers=True) as transaction:
            value = transaction.get(key.encode("utf-8", "surrogateescape"))
            if value is None:
                raise DataError(f"LMDB database {path} has no key '{printable(key)}'; create it again from all images")
            yield value
    except lmdb.Error as error:
        raise DataError(
            f"cannot read key '{printable(key)}' of LMDB database {path}: {error}; create it again"
        ) from error


def count_values(path: str) -> int:
    """The number of images in a database; raises DataError where it cannot be opened."""
    return int(_environment(path, readahead=False).stat()["entries"])


def _environment(path: str, readahead: bool) -> Any:
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    if environment := _known.get(absolute):
        return environment
    real_path = os.path.realpath(path)
    with _opening:  # two threads must not open one database
        if real_path not in _environments:
            lmdb = _lmdb("reading")
            data = os.path.join(real_path, "data.mdb")
            if not os.path.isfile(data):
                raise DataError(
                    f"{path} is no LMDB database: it has no data.mdb; check the path, or run create_lmdb.py"
                )
            if damage := find_database_damage(data, pages=False):
                raise DataError(f"cannot open LMDB database {path}: {damage}; copy it again, or create it again")
            try:
                _environments[real_path] = lmdb.open(real_path, readonly=True, lock=False, readahead=readahead)
            except lmdb.Error as error:
                raise DataError(f"cannot open LMDB database {path}: {error}; create it again") from error
        _known[absolute] = _environments[real_path]
    return _known[absolute]


def _lmdb(purpose: str) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise MachineError(f"{purpose} an LMDB database needs the package lmdb; install it with pip") from error
    return lmdb


def _close_inherited() -> None:
    """In a new process: drops the parent's environments, so that they are opened again when needed."""
    global _opening
    _opening = threading.Lock()  # a thread that does not exist here may hold the parent's
    for environment in _environments.values():
        environment.close()
    _environments.clear()
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def find_database_damage(path: str, *, pages: bool) -> str | None:
    """What is wrong with a `data.mdb`: with the first damaged page of those that lead to keys; None if nothing is.

    Without `pages` only the first two pages and the size are looked at. The library follows page numbers unchecked:
    damaged databases end its process with SIGBUS or SIGSEGV.
    """
    try:
        with open(path, "rb") as file:
            meta = _newest_meta(file)
            if pages and meta.root != _NO_PAGE:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    waiting, seen = [(meta.root, 1)], set()
                    while waiting:
                        number, depth = waiting.pop()
                        below = None if number in seen else _children(content, meta, number, depth)
                        if below is None:
                            return f"data.mdb is damaged (page {number})"
                        seen.add(number)
                        waiting += [(child, depth + 1) for child in below]
    except _DamagedDatabase as error:
        return f"data.mdb is {error}"
    except OSError as error:
        return f"data.mdb cannot be read ({error.strerror})"
    return None


class _DamagedDatabase(ValueError):
    """The words after 'data.mdb is'."""


class _Meta(NamedTuple):
    page_size: int
    depth: int
    root: int
    last_page: int
    transaction: int


def _newest_meta(file: BinaryIO) -> _Meta:
    """The valid one of the two meta pages."""
    size, beginning = os.fstat(file.fileno()).st_size, file.read(2 * 65536)
    found: list[_Meta] = []
    for number in (0, 1):
        start = number * found[0].page_size if found else 0
        if len(beginning) < start + _HEADER + 136:
            raise _DamagedDatabase(f"truncated ({len(beginning):,d} bytes)")
        (flags,) = struct.unpack_from("=H", beginning, start + 10)
        magic, version = struct.unpack_from("=II", beginning, start + _HEADER)
        if magic != _MAGIC or version != _VERSION or not flags & _META_PAGE:
            raise _DamagedDatabase("damaged or of another version of LMDB")
        (page_size,) = struct.unpack_from("=I", beginning, start + _HEADER + 24)
        if page_size not in _PAGE_SIZES or (found and page_size != found[0].page_size):
            raise _DamagedDatabase("damaged (its pages have no possible size)")
        database = start + _HEADER + 24 + 48
        (depth,) = struct.unpack_from("=H", beginning, database + 6)
        found.append(_Meta(page_size, depth, *struct.unpack_from("=QQQ", beginning, database + 40)))
    meta = max(found, key=lambda entry: entry.transaction)
    if meta.root != _NO_PAGE and (meta.root > meta.last_page or meta.depth > _DEEPEST):
        raise _DamagedDatabase("damaged (its first page is not in it)")
    if meta.last_page >= 2**48:
        raise _DamagedDatabase("damaged (it announces an impossible number of pages)")
    needed = (meta.last_page + 1) * meta.page_size
    if meta.root != _NO_PAGE and size < needed:
        raise _DamagedDatabase(f"truncated ({size:,d} bytes of {needed:,d})")
    return meta


def _children(content: mmap.mmap, meta: _Meta, number: int, depth: int) -> list[int] | None:
    """The pages that a page leads to; None where it, or the pages of a value in it, are damaged."""
    size = meta.page_size
    if not 2 <= number <= meta.last_page:
        return None
    page = content[number * size : (number + 1) * size]
    own, flags, lower, upper = struct.unpack_from("=Q2xHHH", page)
    expected = _LEAF if depth == meta.depth else _BRANCH
    if own != number or flags & ~_DIRTY != expected or not _HEADER <= lower <= upper <= size or lower % 2:
        return None
    count = (lower - _HEADER) // 2
    if count < (2 if expected == _BRANCH else 1):
        return None
    children = []
    for place in struct.unpack_from(f"={count}H", page, _HEADER):
        if not upper <= place <= size - 8:
            return None
        low, high, kind, key = struct.unpack_from("=4H", page, place)
        if place + 8 + key > size or key > _LONGEST_KEY:
            return None
        if expected == _BRANCH:
            children.append(low | high << 16 | kind << 32)
            continue
        start, length = place + 8 + key, low | high << 16
        if kind == 0 and start + length <= size:
            continue
        if kind != _IN_OVERFLOW or start + 8 > size:
            return None
        # The value has pages of its own, the first of which is named here.
        (first,) = struct.unpack_from("=Q", page, start)
        needed = (length + _HEADER - 1) // size + 1
        if not 2 <= first <= meta.last_page + 1 - needed:
            return None
        own, flags, stored = struct.unpack_from("=Q2xHI", content, first * size)
        if own != first or flags & ~_DIRTY != _OVERFLOW or stored < needed:
            return None
    return children

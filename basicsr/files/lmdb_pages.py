"""Looks at the pages of an LMDB database before the LMDB library does.

The library maps `data.mdb` into memory and trusts what stands there. With lmdb 3.0.0, reads of damaged databases ended
the process with SIGBUS or SIGSEGV, which no `except` catches and which ends a run without a word. Here the same pages
are read as plain bytes.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_HEADER = 16  # bytes before a page's content
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_IN_OVERFLOW = 0x01
_NO_PAGE = 2**64 - 1
_DEEPEST = 32
_LONGEST_KEY = 511


class _Meta(NamedTuple):
    page_size: int
    depth: int
    root: int
    last_page: int
    transaction: int


def find_short_file(path: str) -> str | None:
    """Why a `data.mdb` cannot be whole, from its first two pages and its size; None where it seems to be."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            meta = _newest_meta(file.read(2 * 65536))
    except OSError as error:
        return f"data.mdb cannot be read ({error.strerror})"
    if isinstance(meta, str):
        return meta
    needed = (meta.last_page + 1) * meta.page_size
    if meta.root != _NO_PAGE and size < needed:
        return f"data.mdb is truncated ({size:,d} bytes of {needed:,d})"
    return None


def find_damaged_page(path: str) -> str | None:
    """Walks all pages that lead to keys, and says what is wrong with the first that does not hold together.

    What is looked at is what the library follows without looking: numbers and kinds of pages, the places of nodes in
    them, and where values lie. Values themselves are not read.
    """
    if short := find_short_file(path):
        return short
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        meta = _newest_meta(pages[: 2 * 65536])
        assert isinstance(meta, _Meta)
        return None if meta.root == _NO_PAGE else _Walk(pages, meta).find_damage()


def _newest_meta(beginning: bytes) -> _Meta | str:
    """The meta page that counts, of the two; or why there is none."""
    found = []
    page_size = 0
    for number in (0, 1):
        start = number * page_size
        if len(beginning) < start + _HEADER + 136:
            return f"data.mdb is truncated ({len(beginning):,d} bytes)"
        (flags,) = struct.unpack_from("=H", beginning, start + 10)
        magic, version = struct.unpack_from("=II", beginning, start + _HEADER)
        if magic != _MAGIC or version != _VERSION or not flags & _META_PAGE:
            return "data.mdb is damaged or of another version of LMDB"
        (size,) = struct.unpack_from("=I", beginning, start + _HEADER + 24)
        if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536) or size != (page_size or size):
            return "data.mdb is damaged (its pages have no possible size)"
        page_size = size
        database = start + _HEADER + 24 + 48
        (depth,) = struct.unpack_from("=H", beginning, database + 6)
        root, last_page, transaction = struct.unpack_from("=QQQ", beginning, database + 40)
        found.append(_Meta(page_size, depth, root, last_page, transaction))
    meta = max(found, key=lambda entry: entry.transaction)
    if meta.root != _NO_PAGE and (meta.root > meta.last_page or meta.depth > _DEEPEST):
        return "data.mdb is damaged (its first page is not in it)"
    if meta.last_page >= 2**48:
        return "data.mdb is damaged (it announces an impossible number of pages)"
    return meta


class _Walk:
    """From the root to all keys."""

    def __init__(self, pages: mmap.mmap, meta: _Meta) -> None:
        self._pages, self._meta = pages, meta
        self._seen: set[int] = set()

    def find_damage(self) -> str | None:
        waiting = [(self._meta.root, 1)]
        while waiting:
            number, depth = waiting.pop()
            below = self._below(number, depth)
            if below is None:
                return f"data.mdb is damaged (page {number})"
            waiting += [(child, depth + 1) for child in below]
        return None

    def _below(self, number: int, depth: int) -> list[int] | None:
        """The pages that a page leads to; None where it is damaged."""
        size, pages = self._meta.page_size, self._pages
        if number in self._seen or not 2 <= number <= self._meta.last_page:
            return None
        self._seen.add(number)
        start = number * size
        own, flags, lower, upper = struct.unpack_from("=Q2xHHH", pages, start)
        expected = _LEAF if depth == self._meta.depth else _BRANCH
        if own != number or flags & ~0x10 != expected or not _HEADER <= lower <= upper <= size or lower % 2:
            return None
        count = (lower - _HEADER) // 2
        if count < (2 if expected == _BRANCH else 1):
            return None
        page = pages[start : start + size]
        children = []
        for place in struct.unpack_from(f"={count}H", page, _HEADER):
            if not upper <= place <= size - 8:
                return None
            low, high, kind, key = struct.unpack_from("=4H", page, place)
            if place + 8 + key > size or key > _LONGEST_KEY:
                return None
            if expected == _BRANCH:
                children.append(low | high << 16 | kind << 32)
            elif not self._is_value(page, place + 8 + key, low | high << 16, kind):
                return None
        return children

    def _is_value(self, page: bytes, place: int, length: int, kind: int) -> bool:
        """Whether a value lies inside the page, or inside the pages of its own that it names."""
        if kind == 0:
            return place + length <= len(page)
        if kind != _IN_OVERFLOW or place + 8 > len(page):
            return False
        (first,) = struct.unpack_from("=Q", page, place)
        size = self._meta.page_size
        count = (length + _HEADER - 1) // size + 1
        if not 2 <= first <= self._meta.last_page + 1 - count:
            return False
        own, flags, stored = struct.unpack_from("=Q2xHI", self._pages, first * size)
        return own == first and flags & ~0x10 == _OVERFLOW and stored >= count

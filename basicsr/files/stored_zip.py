"""Reads the ZIP archives that torch.save writes: nothing in them is compressed, so nothing in them can unfold.

One reader decides what an archive holds and hands it out. Where one program checks an archive and another one reads
it, they can be made to see different files.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 64 << 20
_END, _END64, _LOCATOR, _ENTRY, _HEADER = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_UNKNOWN = 0xFFFFFFFF  # a length that stands, in 64 bits, in the entry's extra field


class Refused(ValueError):
    """Why a file is not read, in words that complete 'it was not loaded: '."""


class _Entry(NamedTuple):
    size: int
    crc: int
    begin: int
    is_plain: bool


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        size: in bytes.
        crc: CRC-32 of its content; 0 where the writer computed none.
        begin: where its header begins in the archive.
        is_plain: neither compressed nor encrypted; others are not read.
        limit: where the next header, or the directory, begins: it ends before that.
    """

    size: int
    crc: int
    begin: int
    is_plain: bool
    limit: int


class StoredZip:
    """The files in an archive, by name.

    Args:
        file: open for reading; its position is changed.
        size: of the file in bytes.
        checksums: whether contents are compared with their CRC-32.

    Raises:
        Refused: it is damaged, its files overlap, or there are two of one name.
    """

    def __init__(self, file: BinaryIO, size: int, *, checksums: bool = True) -> None:
        self._file, self._checksums = file, checksums
        self.members = _members(file, size)

    def read(self, name: str, limit: int) -> bytes:
        """The content of a small file.

        Raises:
            Refused: there is no such file, or it is damaged or larger than `limit` bytes.
        """
        size = self.size(name)
        if size > limit:
            raise Refused(f"its {name} has {size} bytes, more than the {limit} that are read")
        content = bytearray(size)
        self.read_into(name, content)
        return bytes(content)

    def size(self, name: str) -> int:
        """How many bytes a file has.

        Raises:
            Refused: there is no such file.
        """
        if name not in self.members:
            raise Refused(f"it is damaged ({name[:200]!r} is missing); fetch or copy it again")
        return self.members[name].size

    def read_into(self, name: str, target: Any) -> None:
        """Reads a file into a writable buffer of exactly its size.

        Raises:
            Refused: it is damaged, compressed or encrypted, or overlaps the next file.
        """
        member, view = self.members[name], memoryview(target)
        if not member.is_plain:
            raise Refused("it is no file of torch.save (its files are compressed or encrypted); save it anew")
        self._file.seek(member.begin)
        header = self._file.read(30)
        if len(header) != 30 or header[:4] != _HEADER:
            raise Refused(f"it is damaged ({name[:200]!r} has no header); fetch or copy it again")
        begin = member.begin + 30 + sum(struct.unpack("<HH", header[26:]))
        if begin + member.size > member.limit:
            raise Refused("it is damaged or no checkpoint (its files overlap); fetch or copy it again")
        self._file.seek(begin)
        if self._file.readinto(view) != member.size:  # type: ignore[attr-defined]
            raise Refused("it is damaged or no checkpoint (it ends too early); fetch or copy it again")
        # torch.serialization.set_crc32_options(False) writes 0.
        if self._checksums and member.crc and zlib.crc32(view) != member.crc:
            raise Refused(f"it is damaged (CRC-32 of {name[:200]!r} differs); fetch or copy it again")


def _members(file: BinaryIO, size: int) -> dict[str, Member]:
    count, length, begin = _directory(file, size)
    if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise Refused(f"it has {count} files, more than the {MAX_MEMBERS} that are read")
    file.seek(begin)
    directory = file.read(length)
    entries: dict[str, _Entry] = {}
    at = 0
    for _ in range(count):
        name, entry, at = _entry(directory, at)
        if name in entries:
            raise Refused(f"it has two files called {name[:200]!r}")
        entries[name] = entry
    begins = sorted({entry.begin for entry in entries.values()})
    if len(begins) < len(entries) or (begins and begins[-1] >= begin):
        raise Refused("it is damaged or no checkpoint (its files overlap); fetch or copy it again")
    limits = dict(zip(begins, [*begins[1:], begin], strict=True))
    return {name: Member(*entry, limits[entry.begin]) for name, entry in entries.items()}


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, bytes, and beginning of the directory."""
    tail_begin = max(0, size - 65_600)  # a comment of 65,535 bytes may follow
    file.seek(tail_begin)
    tail = file.read(size - tail_begin)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise Refused("it is damaged or no checkpoint (it ends too early); fetch or copy it again")
    count, length, begin = struct.unpack("<HLL", tail[at + 10 : at + 20])
    end = tail_begin + at
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
        (end,) = struct.unpack("<Q", tail[at - 12 : at - 4])
        file.seek(min(end, size))
        record = file.read(56)
        if len(record) != 56 or record[:4] != _END64:
            raise Refused("it is damaged (its directory is not where its end says); fetch or copy it again")
        count, length, begin = struct.unpack("<QQQ", record[32:])
    if begin + length > end or count * 46 > length:
        raise Refused("it is damaged (its directory does not fit into it); fetch or copy it again")
    return count, length, begin


def _entry(directory: bytes, at: int) -> tuple[str, _Entry, int]:
    """Name and content of the entry at a position, and the next one's position."""
    head = directory[at : at + 46]
    if len(head) != 46 or head[:4] != _ENTRY:
        raise Refused("it is damaged (its directory is broken); fetch or copy it again")
    flags, method = struct.unpack("<HH", head[8:12])
    crc, stored, size, name_length, extra_length, comment_length = struct.unpack("<LLLHHH", head[16:34])
    (begin,) = struct.unpack("<L", head[42:])
    name_end = at + 46 + name_length
    name = directory[at + 46 : name_end].decode("utf-8", "replace")
    longer = _long_numbers(directory[name_end : name_end + extra_length])
    # In this order, and those only that do not fit into 32 bits.
    size, stored, begin = (next(longer, -1) if number == _UNKNOWN else number for number in (size, stored, begin))
    is_plain = method == 0 and not flags & 1
    if size < 0 or begin < 0 or (is_plain and stored != size):
        raise Refused(f"it is damaged ({name[:200]!r} has no length); fetch or copy it again")
    return name, _Entry(size, crc, begin, is_plain), name_end + extra_length + comment_length


def _long_numbers(extra: bytes) -> Any:
    """The numbers of 64 bits in an entry's extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            numbers = extra[4 : 4 + length]
            return (number for (number,) in struct.iter_unpack("<Q", numbers[: len(numbers) // 8 * 8]))
        extra = extra[4 + length :]
    return iter(())

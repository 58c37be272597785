"""Shards: tar files in WebDataset's layout, from a folder or a web server, read by an index.

Files of one sample have one name up to its first dot: `000123.hr.png` and `000123.lr.png`. The index, `index.json`
beside the shards, says where each file begins, so that any of them is read alone, in any order:

    {"format": 1, "shards": [{"name": "000000.tar", "size": 1, "members": {"000123.hr.png": [offset, size, CRC-32]}}]}

The package webdataset reads these shards too. It is not used here: it streams, so it shuffles within a buffer only, and
a run that was stopped cannot go on with the very next sample.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.files.regular_files import leaves_folder, open_regular
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.text import first_line, printable

INDEX = "index.json"
MAKE_INDEX = "make it anew by: python scripts/data/create_shards.py --index FOLDER"
_FORMAT = 1
_LARGEST_INDEX = 1 << 30  # bytes
_ATTEMPTS = 3
_PAUSES = (0.2, 1.0)  # seconds, between attempts
_MOST_REDIRECTS = 5
_TIMEOUTS_IN_ALL = 4  # a server may send slowly, but not for ever
_BLOCK = 1 << 18


class Place(NamedTuple):
    """Where a file lies: number of the shard, bytes before it and in it, and the CRC-32 of these."""

    shard: int
    offset: int
    size: int
    crc32: int


class Member(NamedTuple):
    """A file in shards: its whole name, and its place."""

    name: str
    place: Place


@dataclass(frozen=True)
class Shards:
    """Shards and what is in them; `images` has by kind ('hr' of `000123.hr.png`, '' of `000123.png`) and key a file."""

    base: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    images: dict[str, dict[str, Member]]

    def path(self, shard: int) -> str:
        """Path or address of a shard."""
        return join(self.base, self.names[shard])

    def read(self, member: Member, start: int, length: int, timeout: float) -> bytes:
        """Bytes of a file, from `start` on; raises DataError or MachineError where they cannot be read."""
        place = member.place
        length = min(length, place.size - start)
        if length <= 0:
            return b""
        path, size = self.path(place.shard), self.sizes[place.shard]
        if is_url(self.base):
            content, total = fetch(path, timeout, (place.offset + start, length))
        else:
            content, total = _read_here(path, place.offset + start, length)
        if total is not None and total != size:
            state = "is cut short" if total < size else "has changed"
            raise DataError(
                f"{path} {state}: {total:,d} bytes, its index says {size:,d}; copy it again, or {MAKE_INDEX}"
            )
        return content

    def content(self, member: Member, timeout: float) -> bytes:
        """A whole file, compared with its CRC-32."""
        content = self.read(member, 0, member.place.size, timeout)
        if zlib.crc32(content) != member.place.crc32:
            raise DataError(
                f"{self.path(member.place.shard)} has changed since its index was made ({printable(member.name)});"
                f" copy it again, or {MAKE_INDEX}"
            )
        return content


def is_url(path: str) -> bool:
    """Whether shards lie on a web server."""
    return path.startswith(("http://", "https://"))


def join(base: str, name: str) -> str:
    """Path or address of a file beside the index."""
    return f"{base.rstrip('/')}/{quote(name)}" if is_url(base) else os.path.join(base, name)


def key_and_kind(name: str) -> tuple[str, str] | None:
    """Of `a/000123.hr.png` the key `a/000123` and the kind `hr`; None of what is no image."""
    folder, last = os.path.split(name)
    stem, ending = os.path.splitext(last)
    if ending.lower() not in IMAGE_SUFFIXES or stem.startswith(".") or not stem:
        return None
    key, _, kind = stem.partition(".")
    return os.path.join(folder, key), kind


def read_index(base: str, content: bytes) -> Shards:
    """The shards at `base` by the content of their index; raises DataError where it is damaged."""
    try:
        document = json.loads(content)
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']}")
        names, sizes = [], []
        images: dict[str, dict[str, Member]] = {}
        for number, shard in enumerate(document["shards"]):
            names.append(str(shard["name"]))
            sizes.append(_natural(shard["size"]))
            if leaves_folder(names[-1]):
                raise ValueError(f"a shard called {names[-1]}")
            for name, entry in shard["members"].items():
                offset, size, crc32 = map(_natural, entry)
                if offset + size > sizes[-1]:
                    raise ValueError(f"{name} ends beyond {names[-1]}")
                if found := key_and_kind(name):
                    key, kind = found
                    of_kind = images.setdefault(kind, {})
                    if key in of_kind:
                        raise DataError(f"{base}: two images are called {printable(f'{key}.{kind}')}; rename one")
                    of_kind[key] = Member(name, Place(number, offset, size, crc32))
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(first_line(error))
        raise DataError(f"{join(base, INDEX)} is no index of shards ({reason}); {MAKE_INDEX}") from error
    if not images:
        raise DataError(f"{base}: its shards hold no image ({', '.join(IMAGE_SUFFIXES)})")
    return Shards(base, tuple(names), tuple(sizes), images)


def index_bytes(base: str, timeout: float) -> bytes:
    """The content of the index at a folder or an address; raises DataError where there is none."""
    path = join(base, INDEX)
    if is_url(base):
        return fetch(path, timeout)[0]
    try:
        with open_regular(path) as file:
            return file.read(_LARGEST_INDEX)
    except FileNotFoundError as error:
        if os.path.isdir(base):
            raise DataError(f"{base} has no {INDEX}, by which shards are read; {MAKE_INDEX}") from error
        raise DataError(f"the folder of shards {base} does not exist; check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error


def scan(path: Path) -> Iterator[tuple[str, Place]]:
    """The files of a shard in its order, all read for their CRC-32; their shard's number is 0.

    Raises DataError: cut short, compressed, or no tar file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isreg() and not entry.issparse() else None
                if content is None:
                    continue
                crc32 = read = 0
                while block := content.read(_BLOCK):
                    crc32, read = zlib.crc32(block, crc32), read + len(block)
                if read != entry.size:
                    raise DataError(f"{path} is cut short within {printable(entry.name)}; copy it again")
                yield entry.name, Place(0, entry.offset_data, entry.size, crc32)
    except (tarfile.TarError, EOFError) as error:
        what = "is cut short, compressed or no tar file"
        raise DataError(f"{path} {what} ({first_line(error)}); copy it again, or unpack it") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or first_line(error)}; check the disk") from error


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} in the place of a number")
    return value


def _read_here(path: str, offset: int, length: int) -> tuple[bytes, int]:
    """Bytes of a file on disk, and its size."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset)
            blocks = [file.read(length)]  # unbuffered: may return less
            while blocks[-1] and sum(map(len, blocks)) < length:
                blocks.append(file.read(length - sum(map(len, blocks))))
            return b"".join(blocks), size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error


class _TryAgainError(Exception):
    """What may be over soon."""


def fetch(url: str, timeout: float, part: tuple[int, int] | None = None) -> tuple[bytes, int | None]:
    """A file of a web server, or the bytes (first, number) of it; and the size of the whole, if the server tells.

    Raises:
        DataError: the server has no such file, or sends no parts of files.
        MachineError: it cannot be reached, or is too slow, also after three attempts.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _get(url, timeout, part)
        except (OSError, http.client.HTTPException, _TryAgainError) as error:
            _forget_connections()
            failure = error
            if isinstance(error, ssl.SSLCertVerificationError):
                break
            if attempt < len(_PAUSES):
                time.sleep(_PAUSES[attempt])
    reason = "it took too long" if isinstance(failure, TimeoutError) else first_line(failure)
    raise MachineError(
        f"cannot read {url}: {reason}, {_ATTEMPTS} attempts of {timeout:g} s; check network and server, or raise"
        " io_backend: timeout"
    ) from failure


def _get(url: str, timeout: float, part: tuple[int, int] | None) -> tuple[bytes, int | None]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "basicsr"}
    if part is not None:
        headers["Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
    address = url
    for _ in range(_MOST_REDIRECTS):
        split = urlsplit(address)
        connection = _connection(split.scheme, split.netloc, timeout)
        connection.request("GET", f"{split.path or '/'}{f'?{split.query}' if split.query else ''}", headers=headers)
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status not in (301, 302, 303, 307, 308) or location is None:
            break
        response.read()
        address = urljoin(address, location)
        if not is_url(address):
            raise DataError(f"{url} is forwarded to {printable(address)}, which is no web address")
    return _body(url, response, timeout, part)


def _body(
    url: str, response: http.client.HTTPResponse, timeout: float, part: tuple[int, int] | None
) -> tuple[bytes, int | None]:
    status = response.status
    if status >= 500 or status in (408, 429):
        raise _TryAgainError(f"the server answers {status} {response.reason}")
    if part is not None and status == 200:
        _forget_connections()
        raise DataError(f"the server of {url} does not send parts of files; copy the shards to a disk")
    if status not in (200, 206):
        response.read(_BLOCK)
        what = "has changed since its index was made, or is cut short" if status == 416 else "cannot be read"
        raise DataError(f"{url} {what}: the server answers {status} {response.reason}; check the address")
    expected = response.length if part is None else part[1]
    limit = time.monotonic() + _TIMEOUTS_IN_ALL * timeout
    blocks, received = list[bytes](), 0
    while block := response.read1(_BLOCK):
        blocks.append(block)
        received += len(block)
        if time.monotonic() > limit:
            raise TimeoutError
        if received > _LARGEST_INDEX:
            raise DataError(f"{url} is larger than {_LARGEST_INDEX >> 30} GiB, which no index is")
    response.close()  # `read1` leaves it open at its end, and the connection busy
    _, _, whole = (response.getheader("Content-Range") or "").rpartition("/")
    total = int(whole) if whole.isdigit() else None
    if expected is not None and received != expected:
        if total is not None and part is not None and sum(part) > total:
            return b"".join(blocks), total  # cut short on the server
        raise _TryAgainError(f"{received:,d} bytes came of {expected:,d}")
    return b"".join(blocks), total


_open = threading.local()


def _connection(scheme: str, host: str, timeout: float) -> http.client.HTTPConnection:
    """A connection of this thread and process, kept for the next request."""
    known: dict[Any, http.client.HTTPConnection] = _open.__dict__.setdefault("connections", {})
    key = os.getpid(), scheme, host, timeout
    if key not in known:
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        known[key] = kind(host, timeout=timeout)
    return known[key]


def _forget_connections() -> None:
    """Closes those of this process; others' would be closed for them too."""
    known: dict[Any, http.client.HTTPConnection] = _open.__dict__.get("connections", {})
    for key in [key for key in known if key[0] == os.getpid()]:
        known.pop(key).close()

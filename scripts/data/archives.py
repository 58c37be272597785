"""Archives that a user has downloaded: found, compared with what is published, and unpacked with care."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from published_sets import Archive, Target
from tqdm import tqdm

from basicsr.data.storage import stamp_of
from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import leaves_folder
from basicsr.utils.errors import DataError
from basicsr.utils.misc import sizeof_fmt
from basicsr.utils.text import first_line, printable

_BLOCK = 1 << 20
_LARGEST_IMAGE = 1 << 28  # bytes of a file
_MOST_UNPACKED = 4  # times the size of the archive: images hardly get smaller in it
_GRACE = 1 << 26  # bytes beyond that


@dataclass(frozen=True)
class Found:
    """An archive and the file that is it."""

    archive: Archive
    path: Path


class Records:
    """What is known of archives from earlier runs: a JSON file in the output folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._entries: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self._entries = {}

    def of(self, found: Found) -> dict[str, Any]:
        """The record of an archive; empty where the file is another than then."""
        entry = self._entries.get(found.archive.name, {})
        return entry if entry.get("stamp") == list(stamp_of(found.path) or ()) else {}

    def note(self, found: Found, **entries: object) -> None:
        """Adds to the record of an archive."""
        stamp = list(stamp_of(found.path) or ())
        self._entries[found.archive.name] = {**self.of(found), "stamp": stamp, **entries}
        content = json.dumps(self._entries, indent=1, sort_keys=True).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, lambda file: file.write(content))


def find(archives: Sequence[Archive], folders: Sequence[Path]) -> tuple[list[Found], list[Archive]]:
    """The archives that lie in folders, by name, and those that do not; DataError for a folder that is none."""
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"--archives {folder} is no folder; give the one with the downloaded archives")
    found, missing = [], []
    for archive in archives:
        path = next((folder / archive.name for folder in folders if (folder / archive.name).is_file()), None)
        if path is None:
            missing.append(archive)
        else:
            found.append(Found(archive, path))
    return found, missing


def check(found: Found, records: Records) -> str:
    """Compares an archive with what is published, once; returns how, and raises DataError where it differs."""
    archive, path = found.archive, found.path
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        kind = "cut short" if size < archive.size else "another file"
        raise DataError(f"{path} has {size:,d} bytes, {archive.name} has {archive.size:,d}: {kind}; download it again")
    if known := records.of(found).get("checked"):
        return str(known)
    digests = {"sha256": hashlib.sha256(), "md5": hashlib.md5()}
    with open(path, "rb") as file, _bar(size, f"check {archive.name}") as bar:
        while block := file.read(_BLOCK):
            for digest in digests.values():
                digest.update(block)
            bar.update(len(block))
    computed = {name: digest.hexdigest() for name, digest in digests.items()}
    published = {"sha256": archive.sha256, "md5": archive.md5}
    for name, value in published.items():
        if value is not None and computed[name] != value:
            raise DataError(
                f"{path} has the {_NAMES[name]} {computed[name]}, {archive.name} has {value}: damaged or changed;"
                f" download it again from {archive.url}"
            )
    checked = next((f"{_NAMES[name]} as published" for name, value in published.items() if value is not None), None)
    if checked is None:
        checked = f"no digest is published; SHA-256 {computed['sha256']}"
    records.note(found, checked=checked, url=archive.url, **computed)
    return checked


_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, its size as declared, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def members(path: Path) -> Iterator[Member]:
    """The files in a zip or tar archive, in its order, not to be kept; DataError for what no honest one has."""
    with _reading(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                for info in opened.infolist():
                    _refuse_outside(path, info.filename)
                    if info.flag_bits & 1:
                        raise DataError(f"{path} is encrypted; give a copy without a password")
                    if not info.is_dir():
                        yield Member(info.filename, info.file_size, partial(opened.open, info))
            return
        with tarfile.open(path) as tar:
            for entry in tar:
                _refuse_outside(path, entry.name)
                if not (entry.isreg() or entry.isdir()):
                    raise DataError(f"{path} holds {printable(entry.name)}, a link or a device; it is not as published")
                if entry.isreg():
                    yield Member(entry.name, entry.size, partial(cast(Any, tar.extractfile), entry))


def unpack(found: Found, output: Path, targets: Sequence[Target]) -> int:
    """Unpacks images that are not there yet, each whole or not at all; returns how many there are now.

    Raises:
        DataError: damaged, not as published, or the disk is full.
    """
    path, archive = found.path, found.archive
    size = path.stat().st_size
    patterns = [(re.compile(target.pattern), output / target.folder) for target in targets]
    for _, folder in patterns:
        folder.mkdir(parents=True, exist_ok=True)
    declared = count = 0
    with _bar(None, f"unpack {archive.name}", "image") as bar:
        for member in members(path):
            declared += member.size
            if member.size > _LARGEST_IMAGE or declared > _MOST_UNPACKED * size + _GRACE:
                raise DataError(
                    f"{path} of {sizeof_fmt(size)} declares {sizeof_fmt(declared)} of files, up to"
                    f" {printable(member.name)}; it is not as published, download it again"
                )
            for pattern, folder in patterns:
                if match := pattern.fullmatch(member.name.removeprefix("./")):
                    _write(member, folder / match[1], path)
                    count += 1
                    bar.update()
    if count == 0:
        raise DataError(f"{path} holds none of the images that {archive.name} has; download it from {archive.url}")
    return count


def _write(member: Member, target: Path, source: Path) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return

    def copy(file: Any) -> None:
        left = member.size
        with _reading(source), member.open() as opened:
            while block := opened.read(min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise DataError(f"{source}: {printable(member.name)} is larger than declared; download it again")
                file.write(block)
        if left:
            raise DataError(f"{source}: {printable(member.name)} is cut short; download it again")

    write_atomically(target, copy)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What is wrong with an archive in one line."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path} is damaged or no archive ({first_line(error)}); download it again") from error
    except OSError as error:
        if error.errno is None:  # gzip's
            raise DataError(f"{path} is damaged ({first_line(error)}); download it again") from error
        raise


def _refuse_outside(path: Path, name: str) -> None:
    inner = name.removeprefix("./").rstrip("/")
    hidden = os.path.basename(inner).startswith(".") and os.path.basename(inner) != ".."  # as macOS adds them
    if inner not in ("", ".") and leaves_folder(os.path.join(os.path.dirname(inner), "x") if hidden else inner):
        raise DataError(f"{path} holds {printable(name)}, which leads out of its folder; it is not as published")


def _bar(total: int | None, what: str, unit: str = "B") -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", dynamic_ncols=True, disable=None)

"""Images in WebDataset's shards, tar files on a disk or a web server: `io_backend: {type: webdataset}`."""
# ruff: noqa: D102 (ImageRoot says what the methods of other kinds do)

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from basicsr.data.checks.notes import cache_folder
from basicsr.data.data_util import first_few
from basicsr.data.storage import DecodedImage, ImageRoot, OpenImage, PpmImage, ppm_header, stamp_of
from basicsr.files.atomic_files import write_atomically
from basicsr.files.image_headers import Source
from basicsr.files.images import imfrombytes
from basicsr.files.shards import INDEX, Member, Shards, index_bytes, is_url, join, read_index
from basicsr.utils.errors import CheckpointError, DataError, OptionsError
from basicsr.utils.registry import STORAGE_REGISTRY
from basicsr.utils.text import printable

_FIRST_BYTES = 4096

_known: dict[str, tuple[object, Shards]] = {}  # by path: the stamp of the index's file, and the shards
_reading = threading.Lock()


@dataclass(frozen=True)
class ShardSet(ImageRoot):
    """Shards; images are called by their keys, and are those of one kind (`key_and_kind`), `own`.

    `partner` is the kind of the LR images where these are HR images. `timeout` is in seconds.
    """

    own: str = ""
    partner: str = ""
    timeout: float = 30.0

    takes_list: ClassVar[bool] = False
    names_are_paths: ClassVar[bool] = False

    @property
    def _shards(self) -> Shards:
        """Read once, and again when the index on the disk has changed."""
        stamp = None if is_url(self.path) else stamp_of(join(self.path, INDEX))
        with _reading:
            if self.path not in _known or _known[self.path][0] != stamp:
                content = index_bytes(self.path, self.timeout)
                _known[self.path] = stamp, read_index(self.path, content)
                if is_url(self.path):
                    _keep(self.path, content)
            return _known[self.path][1]

    @property
    def _images(self) -> dict[str, Member]:
        """By key; of the only kind there is, if that is no other's."""
        images = self._shards.images
        if self.own in images:
            return images[self.own]
        if len(images) == 1 and self.partner not in images:
            return next(iter(images.values()))
        kinds = ", ".join(f"*.{kind}.png" if kind else "*.png" for kind in sorted(images))
        raise DataError(
            f"{self.path} has no images of the kind '{self.own}', there are {printable(kinds)}; name the kinds in"
            " io_backend: {gt: ..., lq: ...}"
        )

    def _find(self, name: str) -> Member:
        try:
            return self._images[name]
        except KeyError:
            raise DataError(f"{self.path} has no image {printable(name)}; its index has changed") from None

    def names(self, meta_info_file: str | None) -> list[str]:
        if meta_info_file is not None:
            raise OptionsError("meta_info_file chooses among images in folders, not in shards; remove it")
        return list(self._images)

    def pairs(self, lq: str, filename_tmpl: str, meta_info_file: str | None) -> list[dict[str, str]]:
        other = ShardSet(_address(lq), self.partner, self.own, self.timeout)
        here, there = self.names(meta_info_file), other._images
        for keys, others, role, path in ((here, there, "LR", lq), (list(there), self._images, "HR", self.path)):
            if alone := [key for key in keys if key not in others]:
                raise DataError(f"{path} has no {role} image for {first_few(alone)}; pairs have one key")
        return [{"lq_path": key, "gt_path": key} for key in here]

    @property
    def variant(self) -> str:
        return self.own

    def label(self, name: str) -> str:
        member = self._find(name)
        return printable(f"{self._shards.path(member.place.shard)} ({member.name})")

    def file(self, name: str) -> str:
        if is_url(self.path):
            return _kept(self.path)
        return self._shards.path(self._find(name).place.shard)

    def below(self, file: str) -> str:
        return INDEX if is_url(self.path) else super().below(file)

    def place(self, name: str) -> tuple[str, str]:
        return self.path, self._find(name).name

    def relative(self, name: str) -> str:
        return self._find(name).name  # with its kind, since HR and LR may lie in one set of shards

    def key(self, name: str) -> str:
        return name

    def open(self, name: str) -> OpenImage:
        member = self._find(name)
        if member.name[-4:].lower() == ".ppm" and (header := ppm_header(self._source(member))):
            return PpmImage(partial(self._read, member), header, self.label(name))
        return DecodedImage(imfrombytes(self.content(name), source=self.label(name)))

    def content(self, name: str) -> bytes:
        return self._shards.content(self._find(name), self.timeout)

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        yield self._source(self._find(name))

    def warnings(self, count: int) -> Iterator[str]:
        return iter(())

    def _read(self, member: Member, offset: int, length: int) -> bytes:
        return self._shards.read(member, offset, length, self.timeout)

    def _source(self, member: Member) -> Source:
        return _Part(self, member)


class _Part:
    """A file in a shard as a source; its first bytes are read once."""

    def __init__(self, root: ShardSet, member: Member) -> None:
        self.size = member.place.size
        self._read = partial(root._read, member)
        self._first = self._read(0, _FIRST_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self._first) or offset >= self.size:
            return self._first[offset : offset + length]
        return self._read(offset, length)


def _address(path: str) -> str:
    return path.rstrip("/") if is_url(path) else path


def _kept(address: str) -> str:
    """Where the index of an address is kept: what is noted of its images holds as long as that file stays as it is."""
    return str(cache_folder() / "shards" / f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.json")


def _keep(address: str, content: bytes) -> None:
    """Writes it there unless it is there; it is a convenience."""
    path = Path(_kept(address))
    with suppress(OSError, CheckpointError):
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(content))


@STORAGE_REGISTRY.register()
def webdataset(
    path: str, role: str, gt: str = "hr", lq: str = "lr", timeout: Annotated[float, Ge(0.1), Le(3600)] = 30.0
) -> ImageRoot:
    """For `io_backend: {type: webdataset}`, shards with an index, as scripts/data/create_shards.py makes it.

    Args:
        path: folder of the shards, or its address, http:// or https://.
        role: 'gt' or 'lq'.
        gt: kind of the HR images, `hr` for 000123.hr.png; where all images are of one kind, that one is taken.
        lq: kind of the LR images.
        timeout: seconds that a web server may take for an answer; of three attempts each.
    """
    kind, partner = (gt, lq) if role == "gt" else (lq, gt)
    return ShardSet(_address(path), kind, partner, timeout)

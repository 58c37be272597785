"""Where a dataset's images lie: in a folder, or in an LMDB database. Another kind of storage is another `ImageRoot`."""
# ruff: noqa: D102 (ImageRoot says what the methods of other kinds do)

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from basicsr.data import data_util
from basicsr.data.data_util import folder_warnings
from basicsr.files.file_client import FileClient
from basicsr.files.header_readers import read_header, read_ppm_header
from basicsr.files.image_folders import IMAGE_SUFFIXES, Pattern, is_pattern
from basicsr.files.image_headers import MOST_PIXELS, Content, HeaderError, ImageHeader, Source, find_fault
from basicsr.files.images import imfrombytes, ppm_columns
from basicsr.files.lmdb_databases import count_values, read_meta_info, stored_value
from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import STORAGE_REGISTRY
from basicsr.utils.text import printable

_OF_FILE_CLIENT = ("db_paths", "client_keys")  # BasicSR's options; the dataset's roots are used instead

Size = tuple[int, int]
Stamp = tuple[int, int]
_FIRST_BYTES = 4096


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Share:
    """So many images of a dataset, one after the other, each of which training takes `weight` times in a pass."""

    count: int
    weight: float = 1.0


def is_weighted(shares: Sequence[Share]) -> bool:
    """Whether some images are not taken once in a pass."""
    return any(share.weight != 1 for share in shares)


class DecodedImage:
    """An image decoded whole when it was opened; `size` is height and width, `depth` bits to a channel."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.size: Size = (pixels.shape[0], pixels.shape[1])
        self.depth = pixels.dtype.itemsize * 8

    def read(self, window: Window | None = None) -> np.ndarray:
        """The pixels of `window`, or all: (H, W, C), BGR or bands, uint8, uint16, of bands also float32; read-only."""
        top, left, height, width = window or (0, 0, *self.size)
        return self._pixels[top : top + height, left : left + width]


class PpmImage:
    """An uncompressed image read by rows; not mapped, since a file cut short would then end the process."""

    def __init__(self, read_bytes: Callable[[int, int], bytes], header: ImageHeader, label: str) -> None:
        self._read_bytes, self._header, self._label = read_bytes, header, label
        self.size: Size = header.size
        self.depth = header.depth

    def read(self, window: Window | None = None) -> np.ndarray:
        """As `DecodedImage.read`; the memory is its own, in the order RGB. Raises DataError where it cannot be read."""
        header = self._header
        top, left, height, width = window or (0, 0, *self.size)
        row = header.width * 3 * header.depth // 8
        length = (min(top + height, header.height) - top) * row
        try:
            rows = self._read_bytes(header.end - (header.height - top) * row, length)
        except OSError as error:
            raise DataError(f"cannot read image {self._label}: {error.strerror}; check the disk") from error
        if len(rows) != length:
            raise DataError(f"cannot read image {self._label}: it was cut short while in use; copy the file again")
        return ppm_columns(rows, header, left, width)


OpenImage = DecodedImage | PpmImage


@dataclass(frozen=True)
class ImageRoot:
    """A folder that holds the images of one role, HR or LR, and calls each by its path.

    Another kind of storage derives from it, in a file `*storage.py` here; a function under `STORAGE_REGISTRY` makes it
    of `path` and of the options of `io_backend`.
    """

    path: str = ""

    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES
    """How names of images end."""
    takes_list: ClassVar[bool] = True
    """Whether a `meta_info_file` may choose among the images."""
    names_are_paths: ClassVar[bool] = True
    """Whether images are called by their files' paths, which begin with the root's."""

    @property
    def channels(self) -> int:
        """Of the images as they are opened: 3, BGR, or another number of bands in their order."""
        return 3

    @property
    def kind(self) -> str:
        """What notes on checked images are called: images that are read in another way have notes of their own."""
        return "images"

    def names(self, meta_info_file: str | None) -> list[str]:
        """All images, in order; raises DataError where there are none, or the list is wrong."""
        if meta_info_file is not None:
            return data_util.paths_from_meta_info_file(self.path, meta_info_file)
        return data_util.paths_from_folder(self.path, self.suffixes)

    def pairs(self, lq: str, filename_tmpl: str, meta_info_file: str | None) -> list[dict[str, str]]:
        """Pairs of these HR images with those of a root at `lq`: {'lq_path': ..., 'gt_path': ...}; raises likewise."""
        folders, keys = [lq, self.path], ["lq", "gt"]
        if meta_info_file is not None:
            return data_util.paired_paths_from_meta_info_file(folders, keys, meta_info_file, filename_tmpl)
        return data_util.paired_paths_from_folder(folders, keys, filename_tmpl, self.suffixes)

    def listed(self, name: str, number: int = 0) -> str:
        """What an image of the root, or of the root's part of that number, is called in the dataset."""
        return name

    @cached_property
    def _pattern(self) -> Pattern | None:
        return Pattern(self.path) if self.names_are_paths and is_pattern(self.path) else None

    @property
    def folder(self) -> str:
        """The folder or database that the images lie in."""
        return self.path if self._pattern is None else self._pattern.base

    @property
    def folders(self) -> tuple[str, ...]:
        """The same of all parts of the root."""
        return (self.folder,)

    @property
    def given(self) -> tuple[str, ...]:
        """What the options name for them: folders, patterns, databases."""
        return (self.path,)

    @property
    def variant(self) -> str:
        """What tells this root from another with the same folders."""
        return ""

    def may_have(self, name: str) -> bool:
        """Whether an image in the root's folder is one of the root's."""
        return self._pattern is None or self._pattern.matches(name)

    def label(self, name: str) -> str:
        """What to call an image in errors, in one line."""
        return printable(name)

    def file(self, name: str) -> str:
        """The file that an image lies in."""
        return name

    def below(self, file: str) -> str:
        """The path of a file that images lie in, the same wherever the root lies."""
        folder = next((folder for folder in self.folders if file.startswith(folder)), "")
        return file.removeprefix(folder).lstrip("/\\")

    def place(self, name: str) -> tuple[str, str]:
        """The folder or database of an image, and its name there."""
        folder, last = os.path.split(name)
        return folder or ".", last

    def relative(self, name: str) -> str:
        """An image's name, the same wherever the root lies."""
        if self._pattern is not None:
            return self._pattern.name(name)
        return name.removeprefix(self.path).lstrip("/\\") if name.startswith(self.path) else name

    def key(self, name: str) -> str:
        """An image's name without ending, the same in every kind of storage."""
        return os.path.splitext(self.relative(name))[0].replace(os.sep, "/")

    def title(self, name: str) -> str:
        """What results call an image: its name without ending."""
        return self.key(name)

    def open(self, name: str) -> OpenImage:
        """Opens an image, of which a window may be read; raises DataError where that is not possible."""
        if name[-4:].lower() == ".ppm":
            with suppress(OSError, ValueError):  # ValueError: a name with a NUL byte
                file = _File(name, 64)  # nothing of the pixels is kept
                if header := ppm_header(file):
                    return PpmImage(file.read, header, self.label(name))
        return DecodedImage(self.decoded(self.content(name), name))

    def opened(self, name: str) -> AbstractContextManager[Source]:
        """An image's bytes for the length of a block; raises OSError or DataError where they cannot be read."""
        return closing(_File(name, _FIRST_BYTES))

    def content(self, name: str) -> bytes:
        """All bytes of an image; raises DataError where they cannot be read."""
        return FileClient().get(name)

    def form(self, name: str) -> tuple[str, np.dtype] | None:
        """The ending of an image's name and the type of its values, in which results are kept, too; None for PNG."""
        return None

    def header(self, source: Source) -> ImageHeader:
        """What an image announces; raises HeaderError."""
        return read_header(source)

    def fault(self, header: ImageHeader, most_pixels: int = MOST_PIXELS) -> str | None:
        """Why an image with this header is refused, or None."""
        return find_fault(header, most_pixels)

    def decoded(self, content: bytes, label: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
        """An image's pixels (H, W, `channels`), called `label` in errors; raises DataError."""
        return imfrombytes(content, source=label, most_pixels=most_pixels)

    def shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """Height, width and channels of images, where the root lists them."""
        return {}

    def warnings(self, count: int) -> Iterator[str]:
        """What the root holds beside the `count` images that are used."""
        if self._pattern is None:
            yield from (f"{printable(self.path)}: {sentence}" for sentence in folder_warnings(self.path, self.suffixes))


@dataclass(frozen=True)
class LmdbDatabase(ImageRoot):
    """An LMDB database; it calls images by their keys."""

    readahead: bool = False

    takes_list: ClassVar[bool] = False
    names_are_paths: ClassVar[bool] = False

    def names(self, meta_info_file: str | None) -> list[str]:
        return data_util.paths_from_lmdb(self.path)

    def pairs(self, lq: str, filename_tmpl: str, meta_info_file: str | None) -> list[dict[str, str]]:
        return data_util.paired_paths_from_lmdb([lq, self.path], ["lq", "gt"])

    def label(self, name: str) -> str:
        return printable(f"{self.path} (key '{name}')")

    def file(self, name: str) -> str:
        return os.path.join(self.path, "data.mdb")

    def place(self, name: str) -> tuple[str, str]:
        return self.path, name

    def relative(self, name: str) -> str:
        return name

    def key(self, name: str) -> str:
        return name

    def open(self, name: str) -> OpenImage:
        with stored_value(self.path, name, self.readahead) as value:
            if header := ppm_header(Content(value)):
                return PpmImage(partial(self._read, name), header, self.label(name))
            content = bytes(value)
        return DecodedImage(imfrombytes(content, source=self.label(name)))

    def _read(self, name: str, offset: int, length: int) -> bytes:
        with stored_value(self.path, name, self.readahead) as value:
            return bytes(value[offset : offset + length])

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        with stored_value(self.path, name, self.readahead) as value:
            yield Content(value)

    def content(self, name: str) -> bytes:
        with stored_value(self.path, name, self.readahead) as value:
            return bytes(value)

    def shapes(self) -> Mapping[str, tuple[int, int, int]]:
        return read_meta_info(self.path)

    def warnings(self, count: int) -> Iterator[str]:
        listed = len(read_meta_info(self.path))
        if (there := count_values(self.path)) > listed:
            yield f"{self.path} has {there:,d} images, its meta_info.txt lists {listed:,d}; create it again"


@STORAGE_REGISTRY.register()
def disk(path: str) -> ImageRoot:
    """For `io_backend: {type: disk}`; raises OptionsError where `path` is a database's."""
    if _is_database(path):
        raise OptionsError(f"{path} is an LMDB database for io_backend type disk; change the path or the type")
    if path.startswith(("http://", "https://")):
        raise OptionsError(
            f"{path} is a web address, and from there io_backend type webdataset reads shards; change one"
        )
    return ImageRoot(path)


@STORAGE_REGISTRY.register()
def lmdb(path: str, readahead: bool = False) -> ImageRoot:
    """For `io_backend: {type: lmdb}`; raises OptionsError where `path` is no database's."""
    if not _is_database(path):
        raise OptionsError(f"{path} must end in .lmdb for io_backend type lmdb; change the path or the type")
    if is_pattern(path):
        raise OptionsError(f"{path} is a pattern, and io_backend type lmdb takes databases alone; write a list of them")
    return LmdbDatabase(path, readahead)


def _is_database(path: str) -> bool:
    return path.rstrip("/\\").endswith(".lmdb")


def roots_of(io_backend: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, ImageRoot]:
    """The roots at some paths, by role; raises OptionsError where `io_backend` or a path does not fit."""
    options = {key: value for key, value in io_backend.items() if key not in _OF_FILE_CLIENT}
    if "path" in options:
        raise OptionsError("io_backend has no option path; the folders are dataroot_gt and dataroot_lq")
    return {role: STORAGE_REGISTRY.build(options, path=path, role=role) for role, path in paths.items()}


@dataclass(frozen=True)
class StoredImages:
    """A dataset's images and what they must be like, as its method `stored_images` returns them.

    `files` has by role, 'gt' and 'lq' or 'lq' alone, the name of each item's image in its root, in `roots`; those of
    the first role are the dataset's names. HR is `scale` times as large as LR, exactly if `exact` (in training), else
    with pixels left over below and right. HR patches of side `gt_patch_size` must fit in. `chosen` images are named by
    a list, so that others in the folder are left out on purpose. `shares` are those of its folders, in order; none
    stands for one. Where there are no LR images, `degradation` makes them: steps with all their options.
    """

    files: Mapping[str, Sequence[str]]
    roots: Mapping[str, ImageRoot]
    scale: int = 1
    exact: bool = False
    gt_patch_size: int | None = None
    chosen: bool = False
    shares: tuple[Share, ...] = ()
    degradation: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.files.values())))

    @property
    def names(self) -> str:
        """The role whose images' names are the dataset's."""
        return next(iter(self.files))

    def label(self, role: str, index: int) -> str:
        """What to call an image in errors."""
        return self.roots[role].label(self.files[role][index])

    def titles(self, role: str) -> list[str]:
        """What results call the images."""
        return [self.roots[role].title(file) for file in self.files[role]]


def stored_images(dataset: Any) -> StoredImages | None:
    """A dataset's images; None where it does not say where they lie."""
    method = getattr(dataset, "stored_images", None)
    answer = method() if callable(method) else None
    return answer if isinstance(answer, StoredImages) else None


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """Size and time of the last change in nanoseconds; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


class _File:
    """An open file as a source, whose first bytes are read at once; raises OSError where it cannot be opened."""

    def __init__(self, path: str, first: int) -> None:
        self._file = open_regular(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._first = self._file.read(first)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self._first) or offset >= self.size:
            return self._first[offset : offset + length]
        self._file.seek(offset)
        return self._file.read(length)

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def ppm_header(source: Source) -> ImageHeader | None:
    """The header of an image whose windows can be read; None where it must be decoded whole, or refused."""
    if source.read(0, 2) != b"P6":
        return None
    try:
        header = read_ppm_header(source)
    except HeaderError:
        return None
    return header if header.end <= source.size and find_fault(header) is None else None

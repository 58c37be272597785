"""Reads files of torch.save: tensors and plain values, no code, no more memory or time than the file's size asks for.

Both kinds are read, the ZIP archives of PyTorch 1.6 and later and the row of pickles before. A file is opened once:
what was checked is what is read.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from basicsr.files.safe_pickles import MAX_PICKLE_BYTES, STRANGER, PickleMachine, check_nesting
from basicsr.files.stored_zip import Refused, StoredZip
from basicsr.files.tensor_pickles import Storage, StorageKind, Tensors, View, vocabulary
from basicsr.utils.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_KEY = 200
# How files begin that are none of torch.save, and what they are.
_OTHERS = (
    (b"\x1f\x8b", "it is compressed by gzip; unpack it"),
    (b"BZh", "it is compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "it is compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd; unpack it"),
    (b"7z\xbc\xaf", "it is a 7-Zip archive; unpack it"),
    (b"Rar!", "it is a RAR archive; unpack it"),
    (b"\x93NUMPY", "it is an array of NumPy; give weights saved by torch.save or safetensors"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them; give weights saved by torch.save or safetensors"),
)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes; folders, devices and pipes, at which reading could wait for ever, are refused.

    Raises:
        CheckpointError: it is no file, or cannot be read.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)
        # Were it replaced by a pipe meanwhile, opening would not wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            _refuse_special(path, status.st_mode)
            yield file, status.st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"checkpoint {path} does not exist; check the path") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError) or "null" not in str(error):
            raise
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; check the path") from None


def _refuse_special(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"checkpoint {path} is a folder; name the file")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"checkpoint {path} is a device or a pipe; name a file")


def load_tensors(path: str | os.PathLike[str], *, checksums: bool = True) -> Any:
    """Reads a file written by torch.save onto the CPU: tensors and plain Python values only, no code is run.

    Args:
        path: of the file.
        checksums: compare what is read with the CRC-32 in the file. Leave it out where the file's SHA-256 is known.

    Raises:
        CheckpointError: the file is missing, damaged, or holds objects other than tensors and plain values.
    """
    path = Path(path)
    with opened(path) as (file, size), _refusals(path):
        content = _read(file, size, checksums)
        check_nesting(content)
    return content


def load_state_dict_only(
    path: str | os.PathLike[str], key: str = "state_dict", prefixes: tuple[str, ...] = ("",)
) -> dict[str, torch.Tensor]:
    """Reads one state dict out of a file that holds other things beside it, such as a checkpoint of Lightning.

    Such files name classes of callbacks and hyper-parameters, for which `load_tensors` refuses them. Here nothing is
    imported or called for them: whatever the file names beside dicts and tensors becomes an inert placeholder, and is
    left out. Tensors that are not asked for are not read from the disk.

    Only files of PyTorch 1.6 and later (ZIP archives) are read so; older ones are by `load_tensors`.

    Args:
        path: file written by torch.save.
        key: where the state dict lies. A file without it is taken for the state dict itself.
        prefixes: beginnings of the names to take.

    Returns:
        The tensors by name, on the CPU. Entries that are no dense tensor of a usual type are left out.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no such tensors.
    """
    path = Path(path)
    with opened(path) as (file, size), _refusals(path):
        if _head(file).startswith(b"PK"):
            archive = _Archive(StoredZip(file, size), size)
            described = _entries(archive.content(lambda view: view, tolerant=True), key, prefixes)
            views = {name: view for name, view in described if isinstance(view, View)}
            found: dict[str, Any] = {
                name: archive.tensors.make(view) for name, view in views.items() if isinstance(view.storage, Storage)
            }
        else:
            found = dict(_entries(_read(file, size, True), key, prefixes))
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        beginning = f" that begin with {' or '.join(prefixes)}" if any(prefixes) else ""
        raise CheckpointError(f"checkpoint {path} holds no tensors{beginning}, neither under '{key}' nor at its top")
    return tensors


def _entries(content: object, key: str, prefixes: tuple[str, ...]) -> list[tuple[str, object]]:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
        content = content[key]
    items = content.items() if isinstance(content, dict) else ()
    return [(name, value) for name, value in items if isinstance(name, str) and name.startswith(prefixes)]


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Refused as error:
        raise CheckpointError(f"checkpoint {path} was not loaded: {error}") from error
    except Exception as error:  # a damaged pickle makes a machine fail in any way
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        reason = f" ({said})" if " " in said else ""
        raise CheckpointError(f"checkpoint {path} was not loaded: it is damaged or no checkpoint{reason}") from error


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    return head


def other_kind(head: bytes) -> str | None:
    """What a file is, and what to do, where its beginning shows that torch.save did not write it.

    Args:
        head: the first 512 bytes.
    """
    if not head:
        return "it is damaged or no checkpoint (it is empty); fetch or copy it again"
    if head[257:262] == b"ustar":
        return "it is a tar archive, as PyTorch before 0.1.10 wrote them; unpack it, or save the weights anew"
    return next((reason for beginning, reason in _OTHERS if head.startswith(beginning)), None)


def _read(file: BinaryIO, size: int, checksums: bool) -> Any:
    head = _head(file)
    if reason := other_kind(head):
        raise Refused(reason)
    if head.startswith(b"PK"):
        archive = _Archive(StoredZip(file, size, checksums=checksums), size)
        return archive.content(archive.tensors.make)
    return _Legacy(file, size).content()


class _Archive:
    """A ZIP archive of torch.save.

    Args:
        archive: its files.
        size: of all in bytes.

    Raises:
        Refused: it is another program's archive.
    """

    def __init__(self, archive: StoredZip, size: int) -> None:
        self._archive = archive
        self._folder = _folder(archive)
        self._rows: dict[str, torch.UntypedStorage] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.tensors = Tensors(self, size)
        order = f"{self._folder}/byteorder"
        saved = archive.read(order, 16).decode("ascii", "replace") if order in archive.members else "little"
        if saved not in ("little", "big"):
            raise Refused(f"it is damaged or no checkpoint (its byte order is {saved!r})")
        self._swaps = saved != sys.byteorder

    def content(self, make: Callable[[View], Any], *, tolerant: bool = False) -> Any:
        """What was saved, `make` called for each tensor."""
        pickled = self._archive.read(f"{self._folder}/data.pkl", MAX_PICKLE_BYTES)
        machine = PickleMachine(vocabulary(make), _strangers(self._storage, tolerant), tolerant=tolerant)
        return machine.load(io.BytesIO(pickled))

    def row(self, storage: Storage) -> torch.UntypedStorage:
        """The numbers of a row, read once."""
        if storage.key not in self._rows:
            content = torch.empty(storage.size, dtype=torch.uint8)
            if storage.size:
                self._archive.read_into(f"{self._folder}/data/{storage.key}", content.numpy())
            if self._swaps:
                parts = storage.dtype.itemsize // (2 if storage.dtype.is_complex else 1)
                content = content.view(-1, parts).flip(1).flatten()
            self._rows[storage.key] = content.untyped_storage()
        return self._rows[storage.key]

    def _storage(self, kind: StorageKind, key: str, count: int) -> Storage:
        name, size = f"{self._folder}/data/{key}", count * kind.dtype.itemsize
        if (size or name in self._archive.members) and self._archive.size(name) != size:
            raise Refused(f"it is damaged or no checkpoint ({name[:200]!r} has not {count} numbers)")
        if self._dtypes.setdefault(key, kind.dtype) != kind.dtype:
            raise Refused(f"it is damaged or no checkpoint ({name[:200]!r} is used as two types)")
        return Storage(kind.dtype, key, 0, size)


def _strangers(storage: Callable[[StorageKind, str, int], Storage], tolerant: bool) -> Callable[[tuple[Any, ...]], Any]:
    def persistent(name: tuple[Any, ...]) -> Any:
        match name:
            case ("storage", StorageKind() as kind, str() as key, str(), int() as count, *rest) if (
                len(key) <= _MAX_KEY and type(count) is int and 0 <= count < 1 << 60 and rest in ([], [None])
            ):
                return storage(kind, key, count)
        if tolerant:
            return STRANGER
        raise Refused("it is damaged or no checkpoint (its pickle names no storage)")

    return persistent


def _folder(archive: StoredZip) -> str:
    """The folder in which everything lies in an archive of torch.save."""
    names = archive.members
    folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise Refused("it is a TorchScript program, which would have to be run; give its weights, saved by torch.save")
    if len(folders) != 1:
        raise Refused(f"it is a ZIP archive of other files ({', '.join(map(repr, list(names)[:3]))[:200]})")
    return folders[0]


class _Legacy:
    """A file of PyTorch before 1.6: pickles of a number, a version, the machine and the content, then the storages.

    Args:
        file: open.
        size: in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._rows: dict[str, torch.UntypedStorage] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._announced = 0
        self._tensors = Tensors(self, size)

    def content(self) -> Any:
        """What was saved.

        Raises:
            Refused: it is no such file.
        """
        self._file.seek(0)
        stream = io.BytesIO(self._file.read(min(self._size, MAX_PICKLE_BYTES)))
        machine = PickleMachine(vocabulary(self._tensors.make), self._persistent)
        for wanted in (_LEGACY_MAGIC, _LEGACY_VERSION):
            if machine.load(stream) != wanted:
                raise Refused("it is damaged or no checkpoint (it is a pickle, but none of torch.save)")
        machine.load(stream)  # about the machine that wrote it
        content = machine.load(stream)
        keys = machine.load(stream)
        self._fill(keys, stream.tell())
        return content

    def row(self, storage: Storage) -> torch.UntypedStorage:
        """The numbers of a row, which are filled in at the end."""
        return self._rows[storage.key]

    def _persistent(self, name: tuple[Any, ...]) -> Any:
        match name:
            case ("storage", StorageKind(dtype), str() as key, str(), int() as count, view) if (
                len(key) <= _MAX_KEY and type(count) is int and 0 <= count < 1 << 60
            ):
                return self._storage(dtype, key, count, view)
        raise Refused("it is damaged or no checkpoint (its pickle names no storage)")

    def _storage(self, dtype: torch.dtype, key: str, count: int, view: Any) -> Storage:
        size = count * dtype.itemsize
        if key not in self._rows:
            self._announced += size + 8
            if self._announced > self._size:
                raise Refused(
                    "it is damaged or no checkpoint (its storages are larger than it); fetch or copy it again"
                )
            self._rows[key], self._dtypes[key] = torch.UntypedStorage(size), dtype
        if self._dtypes[key] != dtype or self._rows[key].nbytes() != size:
            raise Refused("it is damaged or no checkpoint (a storage is used as two types)")
        match view:
            case None:
                return Storage(dtype, key, 0, size)
            case (str(), int() as offset, int() as length) if offset >= 0 and length >= 0 and offset + length <= count:
                return Storage(dtype, key, offset * dtype.itemsize, length * dtype.itemsize)
        raise Refused("it is damaged or no checkpoint (a view of a storage is none)")

    def _fill(self, keys: Any, at: int) -> None:
        known = isinstance(keys, list) and len(keys) == len(self._rows) and all(type(key) is str for key in keys)
        if not known or set(keys) != set(self._rows):
            raise Refused("it is damaged or no checkpoint (its storages are not those of its tensors)")
        self._file.seek(at)
        for key in keys:
            row, itemsize = self._rows[key], self._dtypes[key].itemsize
            begin = self._file.read(8)
            if len(begin) != 8 or struct.unpack("<q", begin)[0] * itemsize != row.nbytes():
                raise Refused("it is damaged (a storage has another length than its tensors say); fetch it again")
            if row.nbytes():
                content = torch.empty(0, dtype=torch.uint8).set_(row)
                view: Any = content.numpy()
                if self._file.readinto(view) != row.nbytes():  # type: ignore[attr-defined]
                    raise Refused("it is damaged or no checkpoint (it ends too early); fetch or copy it again")

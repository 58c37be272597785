"""Writing files so that a crash leaves either the old file or the new one, and reading tensors without running code."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from basicsr.utils.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
    """Writes a file by way of a temporary neighbour: write, flush, fsync, rename, fsync of the folder.

    Args:
        path: the file to create or replace.
        write: called with the open binary file.

    Returns:
        SHA-256 in hexadecimal and size in bytes of what was written.

    Raises:
        CheckpointError: the file could not be written; the old one, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = _sha256(file)
            size = file.tell()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = error if isinstance(error, OSError) else "not all of it could be written; is the disk full?"
        raise CheckpointError(f"cannot save {path}: {reason}") from error
    return digest, size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return _sha256(file)


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads a file written by torch.save onto the CPU: tensors and plain Python values only, no code is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds objects other than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is damaged or no checkpoint"
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            reason = "it holds Python objects other than tensors, which could run code; ask for a plain state dict"
        raise CheckpointError(f"checkpoint {path} was not loaded: {reason}") from error
    except Exception as error:  # a damaged pickle makes the unpickler fail in any way
        raise _damaged(path, error) from error


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
    if not zipfile.is_zipfile(path):
        content: object = load_tensors(path)
        tensors = {name: value for name, value in _entries(content, key, prefixes) if isinstance(value, torch.Tensor)}
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                folder = _checked_folder(archive, path.stat().st_size)
                content = _unpickled(archive.read(f"{folder}/data.pkl"))
                views = {name: _view(value) for name, value in _entries(content, key, prefixes)}
                storages = _Storages(archive, folder)
                tensors = {name: storages.tensor(view) for name, view in views.items() if view is not None}
        except Exception as error:  # as above
            raise _damaged(path, error) from error
    if not tensors:
        beginning = f" that begin with {' or '.join(prefixes)}" if any(prefixes) else ""
        raise CheckpointError(f"checkpoint {path} holds no tensors{beginning}, neither under '{key}' nor at its top")
    return tensors


def _entries(content: object, key: str, prefixes: tuple[str, ...]) -> list[tuple[str, object]]:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
        content = content[key]
    items = content.items() if isinstance(content, dict) else ()
    return [(name, value) for name, value in items if isinstance(name, str) and name.startswith(prefixes)]


# What stands in a pickle for a tensor. All that a pickle is handed has a `__setstate__` that does nothing, on itself as
# on its instances: by the default one a pickle could write to the attributes of our classes.


class _Storage(NamedTuple):
    """A row of numbers in a file of its own within the archive."""

    dtype: torch.dtype
    key: str

    def __setstate__(*_: object) -> None: ...


class _View(NamedTuple):
    """The arguments of torch._utils._rebuild_tensor_v2: a tensor is a view of a storage."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    requires_grad: Any = None
    hooks: Any = None
    metadata: Any = None

    def __setstate__(*_: object) -> None: ...


class _Parameter(NamedTuple):
    """The arguments of torch._utils._rebuild_parameter."""

    data: Any
    requires_grad: Any = None
    hooks: Any = None

    def __setstate__(*_: object) -> None: ...


class _Dict(dict[Any, Any]):
    """Stands for collections.OrderedDict, and has no attributes that a pickle could set."""

    __slots__ = ()

    # Python 3 fills them item by item; copies of an argument would take far more memory than a pickle has bytes.
    def __init__(self, *_: object) -> None: ...

    def __setstate__(*_: object) -> None: ...


class _Stranger:
    """Stands for every other class, function or object: accepts whatever a pickle does to it, and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> _Stranger:
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> _Stranger:
        return self

    def _nothing(*_: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _nothing


_MEANINGS: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _View,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
}
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _InertUnpickler(pickle.Unpickler):
    """Gives a pickle nothing of this process but the classes above and torch's dtypes, which cannot be changed."""

    def find_class(self, module: str, name: str, /) -> Any:
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return _DTYPES[name]
        return _MEANINGS.get((module, name), _Stranger)

    def persistent_load(self, pid: Any, /) -> Any:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, *_):
                return _Storage(dtype, key)
        return _Stranger()


def _unpickled(content: bytes) -> object:
    import pickletools

    # The unpickler would set memory aside for a length or a number before it finds that the file has no such thing.
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise pickle.UnpicklingError(f"an object has the number {argument}")
    return _InertUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()


def _view(value: object) -> _View | None:
    if isinstance(value, _Parameter):
        value = value.data
    return value if isinstance(value, _View) and isinstance(value.storage, _Storage) else None


def _checked_folder(archive: zipfile.ZipFile, size: int) -> str:
    """The folder in which everything lies in an archive of torch.save, which never compresses.

    Raises:
        ValueError: the archive is not such a one, or its files would take more memory than it has bytes.
    """
    members = archive.infolist()
    folders = [name.removesuffix("/data.pkl") for name in archive.namelist() if re.fullmatch("[^/]+/data.pkl", name)]
    if len(folders) != 1:
        raise ValueError("it is a ZIP archive of other files")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its files are compressed")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its files overlap")
    order = f"{folders[0]}/byteorder"
    if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
        raise ValueError("it was saved on a machine of another byte order")
    return folders[0]


class _Storages:
    """The numbers of the tensors in an archive of torch.save, each storage read once.

    Args:
        archive: open.
        folder: where everything lies in it.
    """

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def tensor(self, view: _View) -> torch.Tensor:
        """The tensor that `view` describes.

        Raises:
            ValueError: the view is no tensor's, or sees more elements than its storage has.
        """
        size, stride, offset = view.size, view.stride, view.offset
        if not (_are_numbers(size) and _are_numbers(stride) and _are_numbers((offset,))):
            raise ValueError("a tensor has no shape")
        flat = self._flat(view.storage)
        # Strides of 0 would make it as large as one likes.
        if math.prod(size) > flat.numel():
            raise ValueError(f"a tensor of shape {size} is larger than its storage")
        return flat.as_strided(size, stride, offset)

    def _flat(self, storage: _Storage) -> torch.Tensor:
        known = (storage.key, storage.dtype)
        if known not in self._read:
            content = bytearray(self._archive.read(f"{self._folder}/data/{storage.key}"))
            empty = torch.empty(0, dtype=storage.dtype)
            self._read[known] = torch.frombuffer(content, dtype=storage.dtype) if content else empty
        return self._read[known]


def _are_numbers(values: Any) -> bool:
    # Larger ones are no tensor's, and their product may take minutes.
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    # PyTorch's advice to load without `weights_only` is not passed on: it would run the file's code.
    said = _first(error)
    reason = f" ({said})" if " " in said and "weights_only" not in str(error) else ""
    return CheckpointError(f"checkpoint {path} was not loaded: it is damaged or no checkpoint{reason}")


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

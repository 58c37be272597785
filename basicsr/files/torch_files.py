"""Reads files of weights: tensors and plain values, no code, no more memory or time than the file's size asks for.

Three kinds are read: the ZIP archives of PyTorch 1.6 and later, the row of pickles before, and safetensors. A file is
opened once: what was checked is what is read.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from basicsr.files.other_formats import kind_by_content, kind_by_name, kind_of_archive, kind_of_folder
from basicsr.files.safe_pickles import MAX_TENSORS, Damaged, Refused, SafeUnpickler, Storage, check_nesting
from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import printable

MAX_PICKLE_BYTES = 64 << 20
MAX_HEADER_BYTES = 32 << 20  # of a safetensors file
MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 16 << 20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Ends of names that networks learn or measure, and never count: such a tensor of whole numbers is no weight.
_LEARNED = ("weight", "bias", "running_mean", "running_var", "gamma", "beta", "alpha", "table")
_MASK = "mask"  # buffers that are added before a softmax may hold -inf
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes; raises CheckpointError if it is no file, or the block fails to read it."""
    try:
        # Opening a pipe so does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            head = file.read(512)
            could_be_ours = head.startswith((b"PK", b"\x80")) or head[8:9] == b"{"
            if reason := kind_by_content(head) or (None if could_be_ours else kind_by_name(path, head)):
                raise Refused(reason)
            file.seek(0)
            yield file, status.st_size
    except CheckpointError:
        raise
    except Refused as error:
        raise CheckpointError(f"checkpoint {path} was not loaded: {error}") from error
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise CheckpointError(f"checkpoint {path} does not exist; check the path") from None
        if os.path.isdir(path):
            if reason := kind_of_folder(path):
                raise CheckpointError(f"checkpoint {path} was not loaded: {reason}") from None
            raise CheckpointError(f"checkpoint {path} is a folder; name the file") from None
        if os.path.exists(path) and not os.path.isfile(path):
            raise CheckpointError(f"checkpoint {path} is a device or a pipe; name a file") from None
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes a reader fail in any way
        if "\0" in str(path):
            raise CheckpointError(f"checkpoint {str(path)!r} does not exist; check the path") from None
        said = printable((str(error) or type(error).__name__).splitlines()[0][:200])
        reason = f" ({said})" if " " in said else ""
        raise CheckpointError(f"checkpoint {path} was not loaded: it is damaged or no checkpoint{reason}") from error


def load_tensors(path: str | os.PathLike[str], *, checksums: bool = True) -> Any:
    """Reads a file of torch.save onto the CPU: tensors and plain values only, no code is run; raises CheckpointError.

    `checksums` compares what is read with the CRC-32 in the file; not needed where the file's SHA-256 is known.
    """
    with opened(Path(path)) as (file, size):
        return read_torch_file(file, size, checksums)


def read_torch_file(file: BinaryIO, size: int, checksums: bool = True) -> Any:
    """As `load_tensors`, from an open file; raises Refused and whatever damaged files lead to."""
    file.seek(0)
    if file.read(2) != b"PK":
        return _read_legacy(file, size)
    archive = _Archive(file, size, checksums)
    content = archive.load()
    check_nesting(content)
    archive.read_storages()
    return content


def load_state_dict_only(
    path: str | os.PathLike[str], key: str = "state_dict", prefixes: tuple[str, ...] = ("",)
) -> dict[str, Tensor]:
    """Reads a state dict whose names begin with `prefixes` out of a file that names classes beside it, as Lightning's.

    `key` says where it lies; a file without it is taken for the state dict itself. Nothing is imported or called for
    the rest: it becomes placeholders, and its tensors are not read. Files before PyTorch 1.6 are read as by
    `load_tensors`. Raises CheckpointError where the file is missing, damaged, or holds no such dense tensors.
    """
    with opened(Path(path)) as (file, size):
        archive = _Archive(file, size, tolerant=True) if file.read(2) == b"PK" else None
        content = archive.load() if archive else _read_legacy(file, size)
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
        items = content.items() if isinstance(content, dict) else ()
        named = {name: value for name, value in items if isinstance(name, str) and name.startswith(prefixes)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if archive:
            archive.read_storages({value.untyped_storage().data_ptr() for value in tensors.values()})
    if not tensors:
        beginning = f" that begin with {' or '.join(prefixes)}" if any(prefixes) else ""
        raise CheckpointError(f"checkpoint {path} holds no tensors{beginning}, neither under '{key}' nor at its top")
    return tensors


def read_safetensors(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors on the CPU, and what the header says beside them; raises as `read_torch_file`."""
    import safetensors.torch

    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise Refused(f"it is damaged or no safetensors file (its header has {length} bytes)")
    header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise Refused(f"it is damaged or no safetensors file (its header lists no tensors, or more than {MAX_TENSORS})")
    file.seek(0)
    tensors = safetensors.torch.load(file.read(size))
    metadata = header.pop("__metadata__", None) or {}
    # The library's own order is another one each time.
    return {name: tensors[name] for name in sorted(header, key=lambda name: header[name]["data_offsets"])}, metadata


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Refused("it is damaged or no safetensors file (its header has a name twice)")
    return content


class _Archive:
    """A ZIP archive of torch.save: nothing in it is compressed, so nothing can unfold."""

    def __init__(self, file: BinaryIO, size: int, checksums: bool = True, *, tolerant: bool = False) -> None:
        self._file, self._checksums = file, checksums
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # None where it is no ZIP
        if end and end[5] > MAX_DIRECTORY_BYTES:
            raise Refused(f"it has more than the {MAX_MEMBERS} files that are read")
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise Damaged(f"{error}") from error
        names, members = archive.namelist(), archive.infolist()
        if not len(set(names)) == len(names) <= MAX_MEMBERS:
            raise Refused(f"it has more than the {MAX_MEMBERS} files that are read, or two of one name")
        begins = sorted({member.header_offset for member in members})
        self._limits = dict(zip(begins, [*begins[1:], archive.start_dir], strict=False))
        if len(begins) < len(members) or not all(begin < end for begin, end in self._limits.items()):
            raise Damaged("its files overlap")
        folder = _folder_of(names)
        self._members = {name.removeprefix(folder): member for name, member in zip(names, members, strict=True)}
        order = self._read("byteorder", 16) if "byteorder" in self._members else b"little"
        if order not in (b"little", b"big"):
            raise Damaged(f"its byte order is {order!r}")
        self._swaps = order != sys.byteorder.encode()
        pickled = io.BytesIO(self._read("data.pkl", MAX_PICKLE_BYTES))
        self._unpickler = SafeUnpickler(pickled, size, tolerant=tolerant)

    def load(self) -> Any:
        """What was saved; the numbers of its tensors are not yet read."""
        return self._unpickler.load()

    def read_storages(self, only: Set[int] | None = None) -> None:
        """Reads the numbers, those of all tensors or of those at some addresses."""
        for key, storage in self._unpickler.storages.items():
            if not storage.size or (only is not None and storage.memory.data_ptr() not in only):
                continue
            dtype, member = storage.dtype, self._members.get(f"data/{key}")
            if member is None or member.file_size != storage.size:
                raise Damaged(f"its file {f'data/{key}'!r} has not {storage.size // dtype.itemsize} numbers")
            content = _bytes_of(storage)
            self.read_into(f"data/{key}", content.numpy())
            if self._swaps:
                number = dtype.itemsize // (2 if dtype.is_complex else 1)
                content.copy_(content.view(-1, number).flip(1).flatten())

    def _read(self, name: str, limit: int) -> bytes:
        size = self._members[name].file_size
        if size > limit:
            raise Refused(f"its {name} has {size} bytes, more than the {limit} that are read")
        content = bytearray(size)
        self.read_into(name, content)
        return bytes(content)

    def read_into(self, name: str, target: Any) -> None:
        """Reads a file into a writable buffer of exactly its size, and compares its CRC-32."""
        member, view = self._members[name], memoryview(target)
        if member.compress_type or member.flag_bits & 1 or member.compress_size != member.file_size:
            raise Refused("it is no file of torch.save (its files are compressed or encrypted); save it anew")
        self._file.seek(member.header_offset)
        header = self._file.read(30)
        if len(header) != 30 or header[:4] != b"PK\3\4":
            raise Refused(f"it is damaged ({member.filename[:200]!r} has no header); fetch or copy it again")
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if begin + member.file_size > self._limits[member.header_offset]:
            raise Damaged("its files overlap")
        self._file.seek(begin)
        if self._file.readinto(view) != member.file_size:  # type: ignore[attr-defined]
            raise Damaged("it ends too early")
        # torch.serialization.set_crc32_options(False) writes 0.
        if self._checksums and member.CRC and zlib.crc32(view) != member.CRC:
            raise Refused(f"it is damaged (CRC-32 of {member.filename[:200]!r} differs); fetch or copy it again")


def _folder_of(names: list[str]) -> str:
    """The folder, with its slash, in which everything lies in an archive of torch.save."""
    if reason := kind_of_archive(names):
        raise Refused(reason)
    folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        shown = ", ".join(map(repr, names[:3]))[:200]
        raise Refused(f"it is a ZIP archive of other files ({shown}); unpack it, or give another file")
    return folders[0]


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """A file of PyTorch before 1.6: pickles of a number, a version, the machine and the content, then the storages."""
    file.seek(0)
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    unpickler = SafeUnpickler(stream, size)
    if [unpickler.load(), unpickler.load()] != [_LEGACY_MAGIC, _LEGACY_VERSION]:
        raise Damaged("it is a pickle, but none of torch.save")
    unpickler.load()  # about the machine that wrote it
    content, keys = unpickler.load(), unpickler.load()
    check_nesting(content)
    if not isinstance(keys, list) or sorted(keys) != sorted(unpickler.storages):
        raise Damaged("its storages are not those of its tensors")
    file.seek(stream.tell())
    for key in keys:
        storage, begin = unpickler.storages[key], file.read(8)
        if len(begin) != 8 or struct.unpack("<q", begin)[0] * storage.dtype.itemsize != storage.size:
            raise Refused("it is damaged (a storage has another length than its tensors say); fetch it again")
        if storage.size and file.readinto(_bytes_of(storage).numpy()) != storage.size:  # type: ignore[attr-defined]
            raise Damaged("it ends too early")
    return content


def _bytes_of(storage: Storage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage.memory)


def check_weights(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], expected: Mapping[str, Tensor] | None = None
) -> None:
    """Raises CheckpointError unless weights are dense, floating and finite, and counters whole numbers.

    `expected` are the network's own tensors, which say what is a weight; without them the names do.
    """
    for key, value in tensors.items():
        if fault := _fault(key, value, None if expected is None else expected.get(key)):
            raise CheckpointError(f"checkpoint {path} was not loaded: its weight '{key}' {fault}")


def _fault(key: str, value: Tensor, wanted: Tensor | None) -> str | None:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return "is sparse, quantised or without numbers; save the weights as dense float32 tensors"
    kind = str(value.dtype).removeprefix("torch.")
    learned = wanted.is_floating_point() if wanted is not None else key.rpartition(".")[2].endswith(_LEARNED)
    if value.dtype not in _FLOATS:
        if learned or value.is_complex() or value.is_floating_point():
            return f"is {kind}, allowed are float32, float16, bfloat16 and float64; give the file as it was trained"
        return None
    broken = ~torch.isfinite(value.float())  # float64 may be beyond float32
    if key.endswith(_MASK):
        broken &= value != -torch.inf
    if count := int(broken.sum()):
        return f"has {count} of {value.numel()} values that are NaN or infinite; give another file"
    if wanted is not None and not learned and not torch.equal(value, value.round()):
        return f"is {kind} with fractions where the network counts; give another file"
    return None


def check_not_all_zero(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for a file of zeros, as of a download that set aside its room and no more."""
    weights = [value for value in tensors.values() if value.is_floating_point() and value.numel()]
    if weights and not any(bool(value.any()) for value in weights):
        raise CheckpointError(f"checkpoint {path} was not loaded: all its weights are 0; fetch or copy it again")

"""Files as strangers may write them. A fragment of a pickle leaves one object on the machine's stack."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basicsr.files.safe_pickles import MAX_DEPTH, MAX_DIMENSIONS, MAX_OPERATIONS
from basicsr.files.torch_files import MAX_MEMBERS

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ROW = struct.pack("<4f", 1, 2, 3, 4)
VERSION = b"\x80\x02M\xe9\x03."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(
    count: int = 4, kind: str = "FloatStorage", key: str = "0", location: str = "cpu", more: bytes = b""
) -> bytes:
    number = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + name_of("torch", kind) + text(key) + text(location) + number + more + b"tQ"


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", of: bytes | None = None) -> bytes:
    ordered = call(name_of("collections", "OrderedDict"))
    function = name_of("torch._utils", "_rebuild_tensor_v2")
    return call(function, storage() if of is None else of, offset, size, stride, b"\x89", ordered)


WEIGHT = tensor(numbers(4), numbers(1))


def state(beside: bytes = b"N", weight: bytes = WEIGHT) -> bytes:
    """{'evil': ..., 'params': {'w': tensor}}"""
    return b"\x80\x02}(" + text("evil") + beside + text("params") + b"}" + text("w") + weight + b"su."


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, row: bytes = ROW, **more: bytes) -> bytes:
    """A ZIP as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", row)
        file.writestr("archive/version", b"3\n")  # PyTorch asks for it
        for name, content in more.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(pickled: bytes, rows: tuple[bytes, ...] = (struct.pack("<q", 4) + ROW,), keys: Any = ("0",)) -> bytes:
    """A file as PyTorch before 1.6 wrote it."""
    about = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    return MAGIC + VERSION + about + pickled + pickle.dumps(list(keys), 2) + b"".join(rows)


def safetensors(header: Any, content: bytes = b"") -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content


def nested_tuples(depth: int) -> bytes:
    """((((),),),)"""
    return b")" + b"\x85" * depth


def nested_lists(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


def zip_directory_of(count: int) -> bytes:
    """An archive whose directory says that there are `count` files, all of them the same."""
    entry = b"PK\1\2" + struct.pack("<4B4HL2L5H2L", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, 65535), min(count, 65535), len(directory), 4, 0)
    return b"PK\3\4" + directory + end


def overlapping() -> bytes:
    """Two entries of the directory that mean the same bytes."""
    content = bytearray(archive(state()))
    first, last = content.find(b"PK\1\2"), content.rfind(b"PK\1\2")
    begin = struct.unpack("<L", content[first + 42 : first + 46])[0]
    content[last + 42 : last + 46] = struct.pack("<L", begin)
    return bytes(content)


def flipped() -> bytes:
    """A good file, one bit of one weight turned over."""
    content = bytearray(archive(state(), row=np.arange(4, dtype=np.float32).tobytes()))
    at = content.find(np.float32(3).tobytes())
    content[at] ^= 1
    return bytes(content)


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def torchscript(folder: Path) -> bytes:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), folder / "script.tmp")
    return (folder / "script.tmp").read_bytes()


def objects_of_numpy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def beyond_limits() -> dict[str, bytes]:
    """Files just beyond what is read, or damaged, by name. Each is small, and PyTorch itself reads or refuses it."""
    ordered, deep = name_of("collections", "OrderedDict"), MAX_DEPTH + 1
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    sixteen = bytes(16)
    some = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(100))
    repeated = b"0".join(tensor(numbers(4), numbers(1)) for _ in range(20))
    large_key = b"}" + b"\x8a\x09" + (1 << 64).to_bytes(9, "little") + b"Ns"
    four, one = numbers(4), numbers(1)
    old = {"weight": tensor(four, one, of=storage(4, more=b"N"))}
    encoded = text("a" * 1000) + text("latin1") + b"\x86q\x01" + (name_of("_codecs", "encode") + b"h\x01R") * 100
    copied = b"}(" + some + b"u\x85q\x01" + (ordered + b"h\x01R") * 20
    quantised = call(name_of("torch._utils", "_rebuild_qtensor"), storage(), *[b"N"] * 6)
    twice = json.dumps(header).encode()
    many_dimensions = [1] * (MAX_DIMENSIONS + 1)
    files = {
        "tuple in a key.pth": archive(state(b"}" + nested_tuples(2) + b"Ns")),
        "tuple in a key, legacy.pth": legacy(state(b"}" + nested_tuples(2) + b"Ns")),
        "tuple in a set.pth": archive(state(call(name_of("__builtin__", "set"), b"]" + nested_tuples(2) + b"a"))),
        "large key.pth": archive(state(large_key)),
        "deep lists.pth": archive(state(nested_lists(deep))),
        "deep tuples.pth": archive(state(nested_tuples(deep))),
        "a list in itself.pth": archive(state(b"]q\x07h\x07a")),
        "long integer.pth": archive(state(b"\x8b" + struct.pack("<i", 256) + bytes(255) + b"\1")),
        "long text.pth": archive(state(b"X" + struct.pack("<I", 1000))),
        "long bytes.pth": archive(state(b"\x8e" + struct.pack("<Q", 1000))),
        "bytearray of a number.pth": archive(state(call(name_of("builtins", "bytearray"), numbers(5)[1:-1]))),
        "copies of a dict.pth": archive(state(b"(" + copied + b"t")),
        "copies of a text.pth": archive(state(b"(" + encoded + b"t")),
        "stride 0.pth": archive(state(weight=tensor(numbers(5), numbers(0)))),
        "stride 0, legacy.pth": legacy(state(weight=tensor(numbers(5), numbers(0), of=storage(4, more=b"N")))),
        "negative stride.pth": archive(state(weight=tensor(numbers(4), numbers(-1), b"K\x03"))),
        "beyond its storage.pth": archive(state(weight=tensor(numbers(4), numbers(1), b"K\x01"))),
        "many dimensions.pth": archive(state(weight=tensor(numbers(*many_dimensions), numbers(*many_dimensions)))),
        "large storage.pth": archive(state(weight=tensor(numbers(4), numbers(1), of=storage(5)))),
        "large storage, legacy.pth": legacy(state(weight=tensor(four, one, of=storage(1 << 10, more=b"N")))),
        "forged length, legacy.pth": legacy(state(**old), (struct.pack("<q", 5),)),
        "other storages, legacy.pth": legacy(state(**old), keys=("1",)),
        "one storage, two types.pth": archive(state(repeated, tensor(numbers(2), one, of=storage(2, "LongStorage")))),
        "quantised.pth": archive(state(weight=quantised)),
        "sparse.pth": archive(state(weight=call(name_of("torch._utils", "_rebuild_sparse_tensor"), b"N", b")"))),
        "nested.pth": archive(state(weight=call(name_of("torch._utils", "_rebuild_nested_tensor"), *[WEIGHT] * 4))),
        "from numpy.pth": archive(
            state(weight=call(name_of("torch._utils", "_rebuild_device_tensor_from_numpy"), *[b"N"] * 4))
        ),
        "compressed.pth": archive(state(), compression=zipfile.ZIP_DEFLATED, row=bytes(1 << 16)),
        "compressed pickle.pth": archive(b"N0" * 1000 + state(), compression=zipfile.ZIP_DEFLATED),
        "overlapping.pth": overlapping(),
        "one name for all.pth": zip_directory_of(MAX_MEMBERS + 1),
        "flipped bit.pth": flipped(),
        "many instructions.pth": archive(b"N0" * (MAX_OPERATIONS // 2) + state()),
        "gzip.pth": b"\x1f\x8b\x08" + bytes(7) + zlib.compress(bytes(1000)),
        "tar.pth": tarred(),
        "numpy.pth": objects_of_numpy(),
        "keras.pth": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "header longer than it.safetensors": struct.pack("<Q", 1000) + b"{}",
        "header of 33 MB.safetensors": safetensors(b"{" + b" " * (32 << 20) + b"}"),
        "deep header.safetensors": safetensors(b'{"a":' * 5000),
        "long number.safetensors": safetensors(b'{"a":' + b"9" * 5000 + b"}"),
        "overlapping.safetensors": safetensors({**header, "v": header["w"]}, sixteen),
        "a name twice.safetensors": safetensors(twice[:-1] + b"," + twice[1:], sixteen),
        "too few.safetensors": safetensors({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, sixteen),
        "not a number.safetensors": safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
        "negative.safetensors": safetensors({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}, sixteen),
        "a hole.safetensors": safetensors({"w": {**header["w"], "data_offsets": [4, 20]}}, bytes(20)),
    }  # fmt: skip
    return files

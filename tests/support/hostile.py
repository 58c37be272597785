"""Files as an attacker would write them. A fragment of a pickle leaves one object on the machine's stack."""

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

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
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


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, row: bytes = bytes(16), **more: bytes) -> bytes:
    """A ZIP as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", row)
        file.writestr("archive/version", b"3\n")  # PyTorch asks for it
        for name, content in more.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(pickled: bytes, rows: tuple[bytes, ...] = (struct.pack("<q", 4) + bytes(16),), keys: Any = ("0",)) -> bytes:
    """A file as PyTorch before 1.6 wrote it."""
    about = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    return MAGIC + VERSION + about + pickled + pickle.dumps(list(keys), 2) + b"".join(rows)


def safetensors(header: Any, content: bytes = b"") -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content


def nested_tuples(depth: int, *, twice: bool = False) -> bytes:
    """((((),),),) or, with each inner one put in twice, what has 2^depth parts."""
    return b")" + (b"q\x07h\x07\x86" if twice else b"\x85") * depth


def nested_lists(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


def zip_directory_of(count: int) -> bytes:
    """An archive whose directory says that there are `count` files, all of them the same."""
    entry = b"PK\1\2" + struct.pack("<4B4HL2L5H2L", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, 65535), min(count, 65535), len(directory), 4, 0)
    return b"PK\3\4" + directory + end


def overlapping() -> bytes:
    """Two entries of the directory that mean the same bytes: a ZIP bomb without compression."""
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


def resource_attacks() -> dict[str, bytes]:
    """Files that would occupy a machine, end the process or fill its memory, by name; each is small."""
    ordered, deep = name_of("collections", "OrderedDict"), 150_000
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    sixteen = bytes(16)
    many = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(20_000))
    big = tensor(numbers(1 << 20, 1 << 20), numbers(0, 0))
    repeated = b"0".join(tensor(numbers(4), numbers(1)) for _ in range(20))
    meta = call(
        name_of("torch._utils", "_rebuild_meta_tensor_no_storage"),
        *(name_of("torch", "float32"), numbers(1 << 40), numbers(1), b"\x89"),
    )
    colliding = (
        b"}(" + b"".join(b"\x8a\x10" + ((2**61 - 1) * n).to_bytes(16, "little") + b"N" for n in range(9999)) + b"u"
    )
    four, one = numbers(4), numbers(1)
    big_old = tensor(numbers(1 << 20, 1 << 20), numbers(0, 0), of=storage(4, more=b"N"))
    old = {"weight": tensor(four, one, of=storage(4, more=b"N"))}
    encoded = text("a" * 100_000) + text("latin1") + b"\x86q\x01" + (name_of("_codecs", "encode") + b"h\x01R") * 50_000
    copied = b"}(" + many + b"u\x85q\x01" + (ordered + b"h\x01R") * 20_000
    in_a_set = b"]" + nested_tuples(90, twice=True) + b"a"
    quantised = call(name_of("torch._utils", "_rebuild_qtensor"), storage(), *[b"N"] * 6)
    twice = json.dumps(header).encode()
    attacks = {
        "deep key.pth": archive(state(b"}" + nested_tuples(deep) + b"Ns")),
        "deep key, legacy.pth": legacy(state(b"}" + nested_tuples(deep, twice=True) + b"Ns")),
        "hash bomb.pth": archive(state(b"}" + nested_tuples(90, twice=True) + b"Ns")),
        "hash bomb in a set.pth": archive(state(call(name_of("__builtin__", "set"), in_a_set))),
        "colliding keys.pth": archive(state(colliding)),
        "deep lists.pth": archive(state(nested_lists(deep))),
        "deep tuples.pth": archive(state(nested_tuples(deep))),
        "endless walk.pth": archive(state(nested_tuples(60, twice=True))),
        "a list in itself.pth": archive(state(b"]q\x07h\x07a")),
        "large memo.pth": archive(state(b"Nr\xff\xff\xff\xff" + b"\x8a\x04abcd" + b"0" * 9)),
        "long integer.pth": archive(state(b"\x8b\xff\xff\xff\x7f")),
        "long text.pth": archive(state(b"X\xff\xff\xff\xff")),
        "long bytes.pth": archive(state(b"\x8e" + struct.pack("<Q", 1 << 60))),
        "large bytearray.pth": archive(state(call(name_of("builtins", "bytearray"), numbers(1 << 40)[1:-1]))),
        "copies of a dict.pth": archive(state(b"(" + copied + b"t")),
        "copies of a text.pth": archive(state(b"(" + encoded + b"t")),
        "stride 0.pth": archive(state(weight=big)),
        "stride 0, legacy.pth": legacy(state(weight=big_old)),
        "negative stride.pth": archive(state(weight=tensor(numbers(4), numbers(-1), b"K\x03"))),
        "beyond its storage.pth": archive(state(weight=tensor(numbers(4), numbers(1), b"K\x01"))),
        "overflowing shape.pth": archive(state(weight=tensor(numbers(1 << 62, 4), numbers(0, 0)))),
        "thousands of dimensions.pth": archive(state(weight=tensor(numbers(*[1] * 5000), numbers(*[1] * 5000)))),
        "large storage.pth": archive(state(weight=tensor(numbers(4), numbers(1), of=storage(1 << 40)))),
        "large storage, legacy.pth": legacy(state(weight=tensor(four, one, of=storage(1 << 40, more=b"N")))),
        "forged length, legacy.pth": legacy(state(**old), (struct.pack("<q", 1 << 60),)),
        "other storages, legacy.pth": legacy(state(**old), keys=([["0"]] * 3,)),
        "one storage, two types.pth": archive(state(repeated, tensor(numbers(2), one, of=storage(2, "LongStorage")))),
        "device meta.pth": archive(state(weight=meta)),
        "quantised.pth": archive(state(weight=quantised)),
        "sparse.pth": archive(state(weight=call(name_of("torch._utils", "_rebuild_sparse_tensor"), b"N", b")"))),
        "nested.pth": archive(state(weight=call(name_of("torch._utils", "_rebuild_nested_tensor"), *[WEIGHT] * 4))),
        "from numpy.pth": archive(
            state(weight=call(name_of("torch._utils", "_rebuild_device_tensor_from_numpy"), *[b"N"] * 4))
        ),
        "set_ of a tensor.pth": archive(state(weight=name_of("torch", "Tensor") + b")\x81" + b"(K\x01tb")),
        "compressed.pth": archive(state(), compression=zipfile.ZIP_DEFLATED, row=bytes(1 << 26)),
        "compressed pickle.pth": archive(b"N0" * (1 << 25) + state(), compression=zipfile.ZIP_DEFLATED),
        "overlapping.pth": overlapping(),
        "one name for all.pth": zip_directory_of(400_000),
        "flipped bit.pth": flipped(),
        "pickle of zeros.pth": archive(b"N0" * 2_000_000 + state()),
        "gzip.pth": b"\x1f\x8b\x08" + bytes(7) + zlib.compress(bytes(1 << 20)),
        "tar.pth": tarred(),
        "numpy.pth": objects_of_numpy(),
        "keras.pth": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "header of 2^60.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
        "header of 34 MB.safetensors": safetensors(b"{" + b" " * 34_000_000 + b"}"),
        "deep header.safetensors": safetensors(b'{"a":' * 100_000),
        "long number.safetensors": safetensors(b'{"a":' + b"9" * 5_000_000 + b"}"),
        "overlapping.safetensors": safetensors({**header, "v": header["w"]}, sixteen),
        "a name twice.safetensors": safetensors(twice[:-1] + b"," + twice[1:], sixteen),
        "overflowing.safetensors": safetensors({"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
        "not a number.safetensors": safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
        "negative.safetensors": safetensors({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}, sixteen),
        "a hole.safetensors": safetensors({"w": {**header["w"], "data_offsets": [4, 20]}}, bytes(20)),
    }  # fmt: skip
    return attacks

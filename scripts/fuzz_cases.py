"""Cases for fuzz_readers.py: real files of each kind, changed where their format has its joints."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image

from basicsr.config.load import load_options, load_test_options, no_warning
from basicsr.files.images import imfrombytes
from basicsr.files.lmdb_databases import read_meta_info
from basicsr.files.regular_files import read_lines
from basicsr.files.torch_files import load_state_dict_only
from basicsr.weights.loading import read_weights

_OPTIONS = Path(__file__).resolve().parents[1] / "options"
_NUMBERS = (0, 1, 2, 3, 7, 63, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


class Reader(Protocol):
    """What is tried. An object of its own per process: nothing is kept between cases."""

    name: str

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        """Name and content of a case."""

    def read(self, path: Path) -> object:
        """Reads it; raises UserError to refuse it."""


def _pick(generator: np.random.Generator, values: Any) -> Any:
    return values[int(generator.integers(len(values)))]


def flipped(content: bytes, generator: np.random.Generator) -> bytes:
    """Bytes changed, taken out, doubled, or cut off at the end, in a few places."""
    changed = bytearray(content)
    for _ in range(int(generator.integers(1, 6))):
        if not changed:
            break
        at, length = int(generator.integers(len(changed))), int(generator.integers(1, 40))
        match int(generator.integers(7)):
            case 0 | 1:
                changed[at] ^= 1 << int(generator.integers(8))
            case 2:
                changed[at] = _pick(generator, (0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                packed = struct.pack(_pick(generator, ("<I", ">I")), _pick(generator, _NUMBERS))
                changed[at : at + 4] = packed
            case 6 if generator.random() < 0.3:
                del changed[at:]
    return bytes(changed)


class OptionsReader:
    """Options files: shipped ones, changed line by line."""

    name = "options"
    _VALUES = (
        *("~", "[]", "{}", "''", "true", "1e999", "-1", "0", "1e4", ".nan", ".inf", "010", "1_000", "0x10", "9" * 5000),
        *("!!python/object/apply:os.system [true]", "!!binary aGk=", "!!set {a, b}", "!x y", "&a [*a]", "*nothing"),
        *(
            "{<<: {a: 1}}",
            "{_base_: /etc/passwd}",
            "{_base_: /dev/zero}",
            '"\\0"',
            '"\\ud800"',
            "\u202e",
            "None",
            "../../x",
        ),
        *("[[[[[[[[[[]]]]]]]]]]", "{a: {a: {a: {a: {}}}}}", "2001-01-01", "1:30", "yes", "|\n  text", ">-", "x" * 3000),
        *("EDSR", "os.system", "L1Loss", "auto", "[1, 2]", "[~, 'a', {}]", "1.5", "-0.0", "9223372036854775808"),
    )
    _LINES = (
        "<<: *a",
        "? [a]",
        "- x",
        "---",
        "...",
        "%YAML 9.9",
        "\tx: 1",
        "a: &a {b: 1}",
        "_base_: [a, a]",
        "'': 1",
        "1: 2",
    )

    def __init__(self) -> None:
        self._texts = [(path.parent, path.read_text("utf-8")) for path in sorted(_OPTIONS.glob("t*/*.yml"))]

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        """A shipped file whose `_base_` is found, with a few lines changed."""
        folder, text = _pick(generator, self._texts)
        lines = re.sub(r"[\w./]+\.yml", lambda found: _absolute(folder, found[0]), text).splitlines()
        for _ in range(int(generator.integers(1, 5))):
            self._change(lines, generator)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        content = flipped(content, generator) if generator.random() < 0.15 else content
        return f"{folder.name}.yml", content

    def _change(self, lines: list[str], generator: np.random.Generator) -> None:
        at = int(generator.integers(len(lines))) if lines else 0
        match int(generator.choice(6, p=[0.08, 0.08, 0.05, 0.05, 0.04, 0.7])):
            case 0 if lines:
                del lines[at]
            case 1 if lines:
                lines.insert(int(generator.integers(len(lines))), lines[at])
            case 2:
                lines.insert(at, " " * int(generator.integers(6)) + _pick(generator, self._LINES))
            case 3 if lines:
                lines[at] = " " * int(generator.integers(8)) + lines[at].lstrip()
            case 4 if lines:
                lines[at] = lines[at].replace(
                    _pick(generator, "aeioust:[]{},"), _pick(generator, ("", "x", ": ", "{", "]")), 1
                )
            case _ if lines and re.match(r"\s*[\w]+: \S", lines[at]):
                lines[at] = f"{lines[at].split(':', 1)[0]}: {_pick(generator, self._VALUES)}"

    def read(self, path: Path) -> object:
        """Reads it as the command would, without looking for its data."""
        if path.name == "train.yml":
            return load_options(path, training=True, paths=False, warn=no_warning)
        return load_test_options(path, paths=False, warn=no_warning)


def _absolute(folder: Path, name: str) -> str:
    path = folder / name
    return str(path) if path.is_file() else name


class MetaReader:
    """Lists of images, and the `meta_info.txt` of databases."""

    name = "meta"
    _NAMES = (
        *("0001.png", "a/b.png", "../x.png", "/etc/passwd", "a\\..\\b.png", "ä.png", "x" * 600, ".png"),
        *("a b (1,2,3) 4.png", "CON"),
    )
    _ENDS = (
        *(" (480,480,3) 1", " (480,480,3)", " (0,1,3) 1", " (-1,2,3) 1", " (9999999999999999999999,1,3) 1", " 1", ""),
        *(" ()", " (1,1,3) 10"),
    )

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        """A few lines, good ones and others."""
        count = int(generator.integers(0, 30))
        names = [_pick(generator, self._NAMES).replace("1", str(number)) for number in range(count)]
        lines = [name + _pick(generator, self._ENDS[:4]) for name in names]
        if generator.random() < 0.5:
            lines = [line[: line.find(" (")] + _pick(generator, self._ENDS) for line in lines]
        text = _pick(generator, ("\n", "\r\n", "\r", "\n\n")).join(lines)
        content = text.encode(_pick(generator, ("utf-8", "utf-8-sig", "utf-16", "cp437")), "replace")
        return _pick(generator, ("meta_info.txt", "names.txt")), flipped(content, generator) if count % 2 else content

    def read(self, path: Path) -> object:
        """Reads it as what its name says."""
        return read_meta_info(path.parent) if path.name == "meta_info.txt" else read_lines(path, "meta_info_file")


class ImagesReader:
    """Images of all kinds that are read; those of PNG also with right checksums about wrong content."""

    name = "images"

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        colour = generator.integers(0, 256, (13, 17, 3), dtype=np.uint8)
        deep = generator.integers(0, 65536, (9, 11, 3), dtype=np.uint16)
        smooth = cv2.GaussianBlur(colour, (5, 5), 2)
        arrays = {"png": [colour, deep, colour[..., 0], np.dstack([colour, colour[..., 0]])], "tif": [colour, deep]}
        self._files = [
            (ending, cv2.imencode(f".{ending}", array)[1].tobytes())
            for ending in ("png", "jpg", "bmp", "webp", "tif", "ppm")
            for array in arrays.get(ending, [smooth, colour])
        ]
        self._files += [("png", _saved(Image.fromarray(smooth).quantize(7), "PNG"))]
        self._files += [("jpg", _saved(Image.fromarray(smooth), "JPEG", progressive=True))]
        self._files += [
            ("tif", _saved(Image.fromarray(colour), "TIFF", compression=kind)) for kind in ("tiff_lzw", "jpeg")
        ]

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        """One of them, changed."""
        ending, content = _pick(generator, self._files)
        if ending == "png" and generator.random() < 0.7:
            content = _changed_png(content, generator)
        elif generator.random() < 0.05:
            content = content[: len(content) // 2] + _pick(generator, self._files)[1]
        else:
            content = flipped(content, generator)
        return f"image.{ending}", content

    def read(self, path: Path) -> object:
        """Decodes it in each of the ways."""
        content = path.read_bytes()
        return [imfrombytes(content, flag, source=str(path)) for flag in ("color", "grayscale", "unchanged")]


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _changed_png(content: bytes, generator: np.random.Generator) -> bytes:
    """Chunks changed, doubled or left out, each with the checksum of what it now holds."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(int(generator.integers(1, 4))):
        index = int(generator.integers(len(chunks)))
        kind, inner = chunks[index]
        match int(generator.integers(6)):
            case 0:
                chunks.insert(index, chunks[index])
            case 1 if len(chunks) > 1:
                del chunks[index]
            case 2:
                extra = _pick(
                    generator, ((b"tRNS", b"\0" * 6), (b"iCCP", b"x\0\0"), (b"zTXt", b"a\0\0x"), (b"acTL", b"\0" * 8))
                )
                chunks.insert(index, extra)
            case 3 if kind == b"IDAT":
                chunks[index] = (kind, zlib.compress(flipped(bytes(600), generator)))
            case _ if inner:
                chunks[index] = (kind, flipped(inner, generator))
    written = b"".join(
        struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in chunks
    )
    return content[:8] + written


class CheckpointsReader:
    """Files of weights: ZIPs and old files of torch.save, and safetensors."""

    name = "checkpoints"
    _FRAGMENTS = (
        *(
            b"N",
            b"]",
            b"}",
            b")",
            b"(",
            b"t",
            b"R",
            b"b",
            b"Q",
            b"0",
            b"2",
            b"\x85",
            b"\x86",
            b"\x87",
            b"s",
            b"u",
            b"a",
            b"e",
        ),
        *(
            b"\x81",
            b"\x8f",
            b"\x90",
            b"\x91",
            b"\x93",
            b"\x94",
            b"1",
            b"l",
            b"d",
            b"o",
            b".",
            b"K\x00",
            b"K\xff",
            b"J\xff\xff\xff\xff",
        ),
        *(
            b"h\x00",
            b"h\x01",
            b"q\x00",
            b"\x8a\x08" + b"\xff" * 8,
            b"cos\nsystem\n",
        ),
        *(
            b"ctorch\nfloat32\n",
            b"ctorch\nSize\n",
            b"ctorch\ndevice\n",
            b"ctorch\nLongStorage\n",
            b"ccollections\nOrderedDict\n",
        ),
        *(
            b"ctorch._utils\n_rebuild_parameter\n",
            b"c_codecs\nencode\n",
            b"c__builtin__\nset\n",
            b"ccollections\nCounter\n",
        ),
        *(b"X\x04\0\0\0meta", b"X\x06\0\0\0latin1", b"G" + struct.pack(">d", float("nan")), b"\x88", b"\x89"),
    )

    def __init__(self) -> None:
        torch.manual_seed(0)
        weight = torch.rand(4, 3, 3, 3)
        content: dict[str, Any] = {
            "params": {"a.weight": weight, "a.bias": torch.nn.Parameter(weight[0, 0, 0]), "t": weight.transpose(0, 1)},
            "network": {"type": "EDSR", "upscale": 2},
            "state": {
                0: [torch.tensor(1), (1.5, None, True)],
                "size": weight.shape,
                "kind": torch.float16,
                "raw": b"x",
            },
        }
        self._zip, self._old = _torch_file(content), _old_file(content)
        with zipfile.ZipFile(io.BytesIO(self._zip)) as archive:
            self._members = {name: archive.read(name) for name in archive.namelist()}
        self._header = {
            "__metadata__": {"network": '{"type": "EDSR"}', "x": "y"},
            "a.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
            "a.bias": {"dtype": "F16", "shape": [4], "data_offsets": [48, 56]},
        }

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        """One of the three kinds, its bytes changed, or its content under a right frame."""
        match int(generator.integers(8)):
            case 0:
                return "x.pth", flipped(self._zip, generator)
            case 1:
                return "x.pth", flipped(self._old, generator)
            case 2 | 3:
                return _pick(generator, ("x.pth", "x.ckpt")), self._zip_of(generator)
            case 4 | 5:
                return "x.pth", self._old_of(generator)
        header = json.dumps(_changed_json(self._header, generator)).encode()
        header = flipped(header, generator) if generator.random() < 0.2 else header
        return "x.safetensors", struct.pack("<Q", len(header)) + header + bytes(56)

    def _zip_of(self, generator: np.random.Generator) -> bytes:
        buffer = io.BytesIO()
        kind = zipfile.ZIP_DEFLATED if generator.random() < 0.03 else zipfile.ZIP_STORED
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in self._members.items():
                changed = self._pickle_of(content, generator) if name.endswith("data.pkl") else content
                if generator.random() < 0.02:
                    changed = flipped(changed, generator)
                if generator.random() > 0.01:
                    archive.writestr(zipfile.ZipInfo(name), changed, kind)  # of no date, so that cases repeat
        return buffer.getvalue()

    def _old_of(self, generator: np.random.Generator) -> bytes:
        stream = io.BytesIO(self._old)
        ends = []
        for _ in range(5):
            for _ in pickletools.genops(stream):
                pass
            ends.append(stream.tell())
        at = int(generator.choice(5, p=[0.05, 0.05, 0.1, 0.7, 0.1]))
        begin = ends[at - 1] if at else 0
        return self._old[:begin] + self._pickle_of(self._old[begin : ends[at]], generator) + self._old[ends[at] :]

    def _pickle_of(self, content: bytes, generator: np.random.Generator) -> bytes:
        """A pickle with instructions changed, put in, doubled, exchanged or left out."""
        begins = [position for *_, position in pickletools.genops(content)]
        parts = [content[begin:end] for begin, end in zip(begins, [*begins[1:], len(content)], strict=True)]
        for _ in range(int(generator.integers(1, 5))):
            at, other = (int(generator.integers(len(parts))) for _ in range(2))
            match int(generator.integers(6)):
                case 0:
                    parts[at] = _pick(generator, self._FRAGMENTS)
                case 1:
                    parts.insert(at, _pick(generator, self._FRAGMENTS))
                case 2:
                    parts[at], parts[other] = parts[other], parts[at]
                case 3 if len(parts) > 1:
                    del parts[at]
                case 4:
                    parts[at:at] = parts[at : at + 12] * int(_pick(generator, (1, 1, 2, 50)))
                case 5 if len(parts[at]) > 1:
                    parts[at] = parts[at][:1] + flipped(parts[at][1:], generator)
        return b"".join(parts)

    def read(self, path: Path) -> object:
        """Reads it, and copies what was read, as all do who use it."""
        tensors = load_state_dict_only(path, "params") if path.suffix == ".ckpt" else read_weights(path).state
        return [tensor.clone().contiguous() for tensor in tensors.values()]


def _torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _old_file(content: Any) -> bytes:
    """As PyTorch before 1.6 wrote it. torch.save names storages by their addresses, so that no case would repeat."""
    rows: dict[int, tuple[str, Any]] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if not isinstance(part, torch.storage.TypedStorage):
                return None
            key, _ = rows.setdefault(part._data_ptr(), (str(len(rows)), part))
            return ("storage", getattr(torch, part._pickle_storage_type()), key, "cpu", part._size(), None)

    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, 2)
    Pickler(buffer, 2).dump(content)
    pickle.dump([key for key, _ in rows.values()], buffer, 2)
    for _, part in rows.values():
        buffer.write(struct.pack("<q", part._size()) + bytes(part._untyped_storage))
    return buffer.getvalue()


def _changed_json(value: Any, generator: np.random.Generator) -> Any:
    """The value with one of its parts exchanged for another, or left out."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = _pick(generator, sorted(value))
        changed = {**value, key: _changed_json(value[key], generator)}
        if generator.random() < 0.1:
            changed[str(_pick(generator, ("__metadata__", "", "a.bias\n", "x" * 2000)))] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.8:
        index = int(generator.integers(len(value)))
        return [*value[:index], _changed_json(value[index], generator), *value[index + 1 :]]
    odd: tuple[Any, ...] = (
        None,
        -1,
        0,
        1,
        48,
        56,
        2**31,
        2**63,
        2**64,
        10**30,
        1.5,
        float("nan"),
        "F32",
        "F8_E4M3",
        "",
        [],
        [4, 3],
        {},
        True,
    )
    return _pick(generator, odd)


READERS: dict[str, Callable[[], Reader]] = {
    "options": OptionsReader,
    "meta": MetaReader,
    "images": ImagesReader,
    "checkpoints": CheckpointsReader,
}

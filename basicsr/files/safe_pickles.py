"""Unpickles plain values, and tensors whose numbers lie elsewhere; imports, calls and changes nothing else.

Python's own unpickler calls whatever a file names. PyTorch's (`weights_only`) has a list of names, but no limits of
depth, time and memory, and lacks protocols 3 to 5. This one is Python's, reduced to the plain instructions; those that
call, write or hash are replaced.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch

from basicsr.files.other_formats import advice_on

MAX_OPERATIONS = 2_000_000
MAX_DEPTH = 64
MAX_VALUES = 10_000_000
MAX_TUPLE_KEYS = 1000
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 64
# Modules that are used several times stand in a state dict as often. Whoever copies all tensors takes so many times
# the file's size.
MAX_SHARING = 64
_LEAST_SHARED = 1 << 24
_MAX_KEY = 200
_PLAIN_VALUES = (str, bytes, int, float, bool, type(None))
_PLAIN_INSTRUCTIONS = (
    *("PROTO", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1"),
    *("TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "EMPTY_SET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"),
)
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"},
    **{"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
_QUANTISED = {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
_QUANTISED |= {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype) and name not in _QUANTISED}
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2 writes these names


class Refused(ValueError):
    """Why a file is not read, in words that complete 'it was not loaded: '."""


class Damaged(Refused):
    """As Refused, for what no writer of checkpoints writes."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it is damaged or no checkpoint ({what})")


class Function(NamedTuple):
    """What a pickle may call by name."""

    call: Callable[..., Any]


class Placeholder:
    """Stands for whatever a tolerant unpickler does not know; ignores all that a pickle does to it."""

    __slots__ = ()


PLACEHOLDER = Placeholder()


class Storage(NamedTuple):
    """Memory for numbers of the file, or the part of it, in bytes, that is a view in files of PyTorch 0.1."""

    dtype: torch.dtype
    memory: torch.UntypedStorage
    begin: int
    size: int


class SafeUnpickler(pickle._Unpickler):
    """Reads pickles of a file of `size` bytes from a stream, with bounded depth, time and memory.

    `storages` are those that they name, by key; the caller reads their numbers. With `tolerant`, PLACEHOLDER stands for
    whatever is neither tensor nor plain value, for which `load` otherwise raises Refused.
    """

    def __init__(self, stream: io.BytesIO, size: int, *, tolerant: bool = False) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")  # for the strings of Python 2
        self.storages: dict[str, Storage] = {}
        self._stream, self._tolerant = stream, tolerant
        self._operations = self._tuple_keys = self._tensors = 0
        self._copied = [0, 0]  # entries of containers; letters and bytes
        self._bytes_left, self._shared_left = size, MAX_SHARING * size + _LEAST_SHARED
        kinds = {f"{name}Storage": _DTYPES[kind] for name, kind in _STORAGES.items()}
        self._names: dict[str, object] = {
            # Plain values that have no instruction of their own in old protocols.
            "collections.OrderedDict": Function(self._ordered),
            "collections.Counter": Function(lambda content=(): Counter(self._ordered(content))),
            "builtins.set": Function(lambda content=(): set(map(self._key, self._copy(content, list)))),
            "builtins.complex": Function(lambda real, imaginary: complex(float(real), float(imaginary))),
            "builtins.bytearray": Function(self._bytearray),
            "_codecs.encode": Function(self._encode),
            # What torch.save writes.
            "torch._utils._rebuild_tensor": Function(self._tensor),
            "torch._utils._rebuild_tensor_v2": Function(self._tensor),
            "torch._utils._rebuild_tensor_v3": Function(self._tensor_of_dtype),
            "torch._utils._rebuild_parameter": Function(self._parameter),
            "torch._utils._rebuild_parameter_with_state": Function(self._parameter),
            "torch._tensor._rebuild_from_type_v2": Function(self._with_attributes),
            "torch.Tensor": torch.Tensor,
            "torch.nn.parameter.Parameter": Function(self._parameter),
            "torch.Size": Function(_size),
            "torch.device": Function(_device),
            "torch.storage.UntypedStorage": torch.uint8,
            "torch.UntypedStorage": torch.uint8,
            **{f"{module}.{name}": kind for module in ("torch", "torch.cuda") for name, kind in kinds.items()},
            **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
        }

    def load(self) -> Any:
        """The value of the next pickle."""
        self.memo: dict[int, Any] = {}
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.read, self.readline = self._read, self._stream.readline
        while self._operations < MAX_OPERATIONS:
            self._operations += 1
            code = self.read(1)
            if code == pickle.STOP:
                return self.stack.pop()
            if code[0] not in self._handlers:
                _refuse(f"the instruction {code!r}")
            self._handlers[code[0]](self)
        raise Refused(f"its pickle has more than {MAX_OPERATIONS} instructions")

    def pop_mark(self) -> list[Any]:
        """What was put onto the stack since the last mark."""
        items, self.stack = self.stack, self.metastack.pop()
        self.append = self.stack.append
        return items

    def find_class(self, module: str, name: str) -> Any:
        """What a name means here; nothing is imported."""
        full = f"{_PYTHON_2_MODULES.get(module, module)}.{name}"
        if full in self._names or self._tolerant:
            return self._names.get(full, PLACEHOLDER)
        raise Refused(advice_on(full))

    def get_extension(self, code: int) -> NoReturn:
        """Refuses the short codes that any module of this process may have given to names."""
        _refuse(f"the unregistered extension code {code}")

    def persistent_load(self, pid: Any) -> object:
        """The storage that a persistent id names, of a size that the file can hold."""
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as count, *rest) if (
                len(key) <= _MAX_KEY and type(count) is int and 0 <= count < 1 << 60 and len(rest) < 2
            ):
                view = rest[0] if rest else None
            case _ if self._tolerant:
                return PLACEHOLDER
            case _:
                raise Damaged("its pickle names no storage")
        size = count * dtype.itemsize
        if key not in self.storages:
            self._bytes_left -= size + 8
            if self._bytes_left < 0:
                raise Damaged("its storages are larger than it")
            self.storages[key] = Storage(dtype, torch.UntypedStorage(size), 0, size)
        storage = self.storages[key]
        if (storage.dtype, storage.size) != (dtype, size):
            raise Damaged("a storage is used as two types")
        match view:
            case None:
                return storage
            case (str(), int() as offset, int() as length) if offset >= 0 and length >= 0 and offset + length <= count:
                return storage._replace(begin=offset * dtype.itemsize, size=length * dtype.itemsize)
        raise Damaged("a view of a storage is none")

    def _read(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) < count:
            _refuse(f"fewer than the {count} bytes that it announces")
        return content

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target.update(map(self._key, values))
        elif target is not PLACEHOLDER:
            _refuse(f"something added to a {type(target).__name__}")

    def _set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if len(flat) % 2 or not isinstance(target, (dict, Placeholder)):
            _refuse(f"keys set in a {type(target).__name__}")
        if isinstance(target, dict):
            target.update(self._pairs(zip(flat[::2], flat[1::2], strict=True)))

    def _pairs(self, pairs: Any) -> list[tuple[Any, Any]]:
        return [(self._key(key), value) for key, value in pairs]

    def _key(self, key: Any) -> Any:
        """The key if it is cheap to hash whatever else is in the dict; PLACEHOLDER for others where tolerant."""
        if type(key) is int:
            fits = -(1 << 63) <= key < 1 << 63  # many larger ones could share one hash
        elif type(key) is tuple:
            self._tuple_keys += 1  # likewise
            fits = self._tuple_keys <= MAX_TUPLE_KEYS and len(key) <= MAX_DEPTH
            fits = fits and all(type(part) in _PLAIN_VALUES for part in key)
        else:
            fits = type(key) in _PLAIN_VALUES or key is PLACEHOLDER
        if fits:
            return key
        if not self._tolerant:
            _refuse(f"a key that is a {type(key).__name__}, neither text nor a number of 64 bits")
        return PLACEHOLDER

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Function) and isinstance(arguments, tuple):
            self.append(function.call(*arguments))
        else:
            self._make_unknown(function)

    def _make_unknown(self, kind: Any) -> None:
        if not self._tolerant:
            _refuse(f"a call of a {type(kind).__name__}")
        self.append(PLACEHOLDER)

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        kind = self.find_class(module, name)
        self.pop_mark()
        self._make_unknown(kind)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is OrderedDict:
            # state_dict() leaves the versions of its modules here. Other attributes could hide a dict's methods.
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif target is not PLACEHOLDER:
            _refuse(f"a state for a {type(target).__name__}")

    def _mapping(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    _handlers: ClassVar[dict[int, Callable[[Any], object]]] = {
        **{
            code[0]: pickle._Unpickler.dispatch[code[0]] for code in (getattr(pickle, it) for it in _PLAIN_INSTRUCTIONS)
        },
        pickle.FRAME[0]: lambda self: self.read(8),
        pickle.BYTEARRAY8[0]: lambda self: self.append(bytearray(self.read(int.from_bytes(self.read(8), "little")))),
        pickle.APPEND[0]: lambda self: self._extend([self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._extend(self.pop_mark()),
        pickle.ADDITEMS[0]: lambda self: self._extend(self.pop_mark()),
        pickle.SETITEM[0]: lambda self: self._set_items([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.DICT[0]: _mapping,
        pickle.FROZENSET[0]: lambda self: self.append(frozenset(map(self._key, self.pop_mark()))),
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: lambda self: self._make_unknown([self.stack.pop() for _ in range(3)].pop()),
        pickle.INST[0]: _instance,
        pickle.OBJ[0]: lambda self: self._make_unknown(self.pop_mark()[0]),
        pickle.BUILD[0]: _build,
    }

    def _copy(self, content: Any, *kinds: type[Any]) -> Any:
        """`content`, if it is of this kind, and if copies of it are no way to fill the memory with a small file."""
        if not isinstance(content, kinds):
            _refuse(f"a copy of a {type(content).__name__}")
        is_text = isinstance(content, (str, bytes))
        self._copied[is_text] += len(content)
        if self._copied[is_text] > (len(self._stream.getbuffer()) if is_text else self._operations):
            _refuse("too many copies of its own parts")
        return content

    def _ordered(self, content: Any = ()) -> OrderedDict[Any, Any]:
        pairs = self._copy(content, dict, list, tuple)
        return OrderedDict(self._pairs(pairs.items() if isinstance(pairs, dict) else pairs))

    def _bytearray(self, content: Any = b"", encoding: Any = None) -> bytearray:
        return bytearray(self._encode(content, encoding) if encoding is not None else self._copy(content, bytes))

    def _encode(self, content: Any, encoding: Any) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            _refuse("text in another encoding than Latin-1")
        return bytes(self._copy(content, str).encode("latin-1"))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, learns: Any = False, *more: Any) -> Any:
        if any(more[1:]):
            raise Refused("it holds tensors that are conjugate or negated only when they are read; save clones of them")
        return self._made(storage, getattr(storage, "dtype", None), offset, size, stride, learns)

    def _tensor_of_dtype(self, storage: Any, *described: Any) -> Any:
        offset, size, stride, learns, _, dtype, *_ = described
        return self._made(storage, dtype, offset, size, stride, learns)

    def _made(self, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any, learns: Any) -> Any:
        """The tensor that a pickle describes; raises Refused if it is none, or larger than its storage."""
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            if self._tolerant:
                return PLACEHOLDER
            raise Damaged("a tensor has no storage")
        if not (_are_numbers(size) and _are_numbers(stride) and _are_numbers((offset,))) or len(size) != len(stride):
            raise Damaged("a tensor has no shape")
        count, there = math.prod(size), storage.size // dtype.itemsize
        shape = f"a tensor of shape {tuple(size)}"
        if math.prod(length for length, step in zip(size, stride, strict=True) if step) <= there < count:
            raise Refused(f"it has {shape} that repeats its numbers, as torch.expand does; save a clone")
        if count > there:
            raise Damaged(f"{shape} is larger than its storage, of {there} numbers")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if (last if count else offset - 1) >= there:
            raise Damaged("a tensor is out of bounds of its storage")
        self._tensors += 1
        self._shared_left -= count * dtype.itemsize
        if self._tensors > MAX_TENSORS or self._shared_left < 0:
            raise Refused(f"it has more than {MAX_TENSORS} tensors, or they share their numbers too often")
        begin, remainder = divmod(storage.begin, dtype.itemsize)
        if remainder:
            raise Damaged("a storage begins between two numbers")
        tensor = torch.empty(0, dtype=dtype).set_(storage.memory, begin + offset, tuple(size), tuple(stride))
        return tensor.requires_grad_(_learns(learns, tensor))

    def _parameter(self, data: Any, learns: Any = True, hooks: Any = None, state: Any = None) -> Any:
        if isinstance(data, torch.Tensor):
            return torch.nn.Parameter(data.detach(), _learns(learns, data))
        if self._tolerant:
            return data
        raise Damaged("a parameter has no tensor")

    def _with_attributes(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor with attributes of its own, which are left out; other kinds of tensor need their class."""
        known = (self._tensor, self._tensor_of_dtype, self._parameter)
        is_known = isinstance(function, Function) and function.call in known and isinstance(arguments, tuple)
        if is_known and (kind is torch.Tensor or kind == Function(self._parameter)):
            return function.call(*arguments)
        if self._tolerant:
            return PLACEHOLDER
        raise Damaged("a tensor is of no known kind")


def _refuse(what: str) -> NoReturn:
    raise Damaged(f"its pickle has {what}")


def _learns(requested: Any, tensor: torch.Tensor) -> bool:
    return requested is True and (tensor.is_floating_point() or tensor.is_complex())


def _are_numbers(values: Any) -> bool:
    # Larger ones are no tensor's, and their product may take minutes.
    fits = isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS
    return fits and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _size(size: Any) -> torch.Size:
    if not _are_numbers(size):
        raise Damaged("a size is no tuple of numbers")
    return torch.Size(size)


def _device(kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not (index is None or (type(index) is int and 0 <= index < 128)):
        raise Damaged("a device has no name")
    return torch.device(kind) if index is None else torch.device(kind, index)


def check_nesting(value: Any, depth: int = 0, known: dict[int, Any] | None = None) -> tuple[int, int]:
    """Raises Refused for a value that is deeper or longer to walk than it looks; returns depth and number of values."""
    # `depth` containers are around it; `known` are those measured, None those not yet done.
    known = {} if known is None else known
    if not isinstance(value, (dict, list, tuple)):
        return 0, 1
    if depth >= MAX_DEPTH:
        raise Damaged(f"its parts are nested deeper than {MAX_DEPTH}")
    if id(value) not in known:
        known[id(value)] = None
        parts = [*value.values(), *getattr(value, "__dict__", {}).values()] if isinstance(value, dict) else value
        sizes = [check_nesting(part, depth + 1, known) for part in parts]
        known[id(value)] = 1 + max((size[0] for size in sizes), default=0), 1 + sum(size[1] for size in sizes)
    if known[id(value)] is None:
        raise Damaged("a part of it holds itself")
    height, count = known[id(value)]
    if depth + height > MAX_DEPTH or count > MAX_VALUES:
        raise Damaged(f"nested {depth + height} deep, with {count} values")
    return height, count

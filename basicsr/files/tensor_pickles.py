"""What pickles of torch.save may name, and the tensors that they describe, each a view of a row of numbers.

Dense tensors on the CPU are made, whatever device they were on; sparse, quantised and nested ones, and those on the
device 'meta', are no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from basicsr.files.safe_pickles import STRANGER, Function
from basicsr.files.stored_zip import Refused

MAX_TENSORS = 200_000
MAX_DIMENSIONS = 64
# Modules that are used several times stand in a state dict as often. Whoever copies all tensors takes so many times
# the file's size.
MAX_SHARING = 64
_LEAST_SHARED = 1 << 24

_STORAGES = {
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_NO_QUANTISED = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)} - {
    *("qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
}
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in sorted(_NO_QUANTISED)}


class StorageKind(NamedTuple):
    """A class of storages: the type of the numbers in them."""

    dtype: torch.dtype


class Storage(NamedTuple):
    """A row of numbers that lies elsewhere in the file.

    Attributes:
        dtype: of the numbers; uint8 where a tensor says itself what they are.
        key: which row.
        begin: where in that row, in bytes; old files hold views of it.
        size: in bytes.
    """

    dtype: torch.dtype
    key: str
    begin: int
    size: int


class View(NamedTuple):
    """A tensor: which numbers of a storage it has. The fields are what a pickle says, unchecked.

    Attributes:
        storage: a Storage.
        offset: of the first number.
        size: the shape, a tuple of integers.
        stride: numbers from one to the next in each dimension.
        requires_grad: whether it is to get gradients.
        dtype: of its numbers.
        is_parameter: make it a torch.nn.Parameter.
    """

    storage: Any
    offset: Any
    size: Any
    stride: Any
    requires_grad: Any
    dtype: Any
    is_parameter: bool = False


class Rows(Protocol):
    """Where the numbers are."""

    def row(self, storage: Storage) -> torch.UntypedStorage:
        """All numbers of a row; those of the tensors are read later in old files."""


class Tensors:
    """Makes tensors of their descriptions.

    Args:
        rows: where their numbers are.
        size: of the file in bytes.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        self._rows, self._count, self._left = rows, 0, MAX_SHARING * size + _LEAST_SHARED

    def make(self, view: View) -> torch.Tensor:
        """The tensor that `view` describes.

        Raises:
            Refused: it is no tensor's, or has more numbers than its storage.
        """
        storage, dtype, offset, size, stride = view.storage, view.dtype, view.offset, view.size, view.stride
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            raise Refused("it is damaged or no checkpoint (a tensor has no storage)")
        if not (_are_numbers(size) and _are_numbers(stride) and _are_numbers((offset,))) or len(size) != len(stride):
            raise Refused("it is damaged or no checkpoint (a tensor has no shape)")
        count, there = math.prod(size), storage.size // dtype.itemsize
        once = math.prod(length for length, step in zip(size, stride, strict=True) if step)
        if once <= there < count:
            raise Refused(
                f"it has a tensor of shape {tuple(size)} that repeats its numbers, as torch.expand does; save a clone"
            )
        if count > there:
            raise Refused(
                f"it is damaged or no checkpoint (a tensor of shape {tuple(size)} is larger than its storage, of"
                f" {there} numbers)"
            )
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if (last if count else offset - 1) >= there:
            raise Refused("it is damaged or no checkpoint (a tensor is out of bounds of its storage)")
        self._count += 1
        self._left -= count * dtype.itemsize
        if self._count > MAX_TENSORS or self._left < 0:
            raise Refused(f"it has more than {MAX_TENSORS} tensors, or they share their numbers too often")
        begin, remainder = divmod(storage.begin, dtype.itemsize)
        if remainder:
            raise Refused("it is damaged or no checkpoint (a storage begins between two numbers)")
        tensor = torch.empty(0, dtype=dtype).set_(self._rows.row(storage), begin + offset, tuple(size), tuple(stride))
        learns = view.requires_grad is True and (dtype.is_floating_point or dtype.is_complex)
        return torch.nn.Parameter(tensor, learns) if view.is_parameter else tensor.requires_grad_(learns)


def _are_numbers(values: Any) -> bool:
    # Larger ones are no tensor's, and their product may take minutes.
    fits = isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS
    return fits and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def vocabulary(make: Callable[[View], Any]) -> dict[str, object]:
    """What the names in a pickle of torch.save mean.

    Args:
        make: gets the description of each tensor; what it returns takes the tensor's place.
    """
    builders = _Builders(make)
    names: dict[str, object] = {
        "torch._utils._rebuild_tensor": Function(builders.tensor),
        "torch._utils._rebuild_tensor_v2": Function(builders.tensor),
        "torch._utils._rebuild_tensor_v3": Function(builders.tensor_of_dtype),
        "torch._utils._rebuild_parameter": Function(builders.parameter),
        "torch._utils._rebuild_parameter_with_state": Function(builders.parameter),
        "torch._tensor._rebuild_from_type_v2": Function(builders.with_attributes),
        "torch.Tensor": torch.Tensor,
        "torch.nn.parameter.Parameter": Function(builders.parameter),
        "torch.Size": Function(_size),
        "torch.device": Function(_device),
        "torch.storage.UntypedStorage": StorageKind(torch.uint8),
        "torch.UntypedStorage": StorageKind(torch.uint8),
    }
    for module in ("torch", "torch.cuda"):
        names |= {f"{module}.{name}": StorageKind(dtype) for name, dtype in _STORAGES.items()}
    return names | {f"torch.{name}": dtype for name, dtype in DTYPES.items()}


class _Builders:
    """The functions of torch._utils, which give descriptions to `make`."""

    def __init__(self, make: Callable[[View], Any]) -> None:
        self._make = make

    def tensor(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> Any:
        if metadata:
            raise Refused("it holds tensors that are conjugate or negated only when they are read; save clones of them")
        return self._make(View(storage, offset, size, stride, requires_grad, getattr(storage, "dtype", None)))

    def tensor_of_dtype(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Any:
        return self._make(View(storage, offset, size, stride, requires_grad, dtype))

    def parameter(self, data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None) -> Any:
        if isinstance(data, View):
            return data._replace(is_parameter=True, requires_grad=requires_grad)
        if isinstance(data, torch.Tensor):
            learns = requires_grad is True and (data.is_floating_point() or data.is_complex())
            return torch.nn.Parameter(data.detach(), learns)
        return _no_tensor(data)

    def with_attributes(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor with attributes of its own, which are left out; other kinds of tensor need their class."""
        own = (self.tensor, self.tensor_of_dtype, self.parameter)
        if not isinstance(function, Function) or function.call not in own or not isinstance(arguments, tuple):
            return _no_tensor(function)
        if kind is not torch.Tensor and kind != Function(self.parameter):
            return _no_tensor(kind)
        return function.call(*arguments)


def _no_tensor(given: Any) -> Any:
    if given is STRANGER:
        return STRANGER
    raise Refused("it is damaged or no checkpoint (a parameter has no tensor)")


def _size(size: Any) -> torch.Size:
    if not _are_numbers(size):
        raise Refused("it is damaged or no checkpoint (a size is no tuple of numbers)")
    return torch.Size(size)


def _device(kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not (index is None or (type(index) is int and 0 <= index < 128)):
        raise Refused("it is damaged or no checkpoint (a device has no name)")
    return torch.device(kind) if index is None else torch.device(kind, index)

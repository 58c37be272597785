"""Core ML's programs (MIL) evaluated by PyTorch, operation by operation, where Core ML itself is not at hand.

It shows that the file on disk means the network: its graph, its weights, its shapes. It does not show what Core ML's
kernels make of it. Operations are those that networks here are converted to, by their definitions in coremltools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.errors import CheckpointError

Arguments = Mapping[str, Any]  # of an operation: tensors by name, lists of them, constants as they are in Python


class MilProgram:
    """A package's program, to be called with an image (1, C, H, W).

    Attributes:
        operations: names of those in it, without constants.
    """

    def __init__(self, path: Path) -> None:
        """Loads a `.mlpackage`; CheckpointError for an operation that is not known here."""
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
        self._main = program.functions["main"]
        self.operations = {op.op_type for op in self._main.operations} - {"const"}
        if unknown := {name for name in self.operations if name not in _KNOWN and not name.startswith("constexpr")}:
            raise CheckpointError(f"{path.name} has operations that cannot be checked: {', '.join(sorted(unknown))}")
        # Of constants alone, as Core ML computes them when it loads the file.
        self._constants = {
            var: _tensor(value)
            for op in self._main.operations
            for var in op.outputs
            if (value := _constant(op, var)) is not None
        }

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The output; CheckpointError where an operation's result has another shape than the file says."""
        values = dict(self._constants)
        values[next(iter(self._main.inputs.values()))] = image
        for op in self._main.operations:
            if all(var in values for var in op.outputs):
                continue
            arguments = {name: _argument(given, values) for name, given in op.inputs.items()}
            outputs = _KNOWN[op.op_type](arguments)
            for var, value in zip(op.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True):
                if any(isinstance(side, int) and side != got for side, got in zip(var.shape, value.shape, strict=True)):
                    raise CheckpointError(f"{op.op_type} {op.name} gives {tuple(value.shape)}, not {var.shape}")
                values[var] = value
        return values[self._main.outputs[0]]


def _constant(op: Any, var: Any) -> Any:
    """The value of a constant, and of compressed weights; None of what depends on the input."""
    if op.op_type.startswith("constexpr"):
        return op.materialized_val_inference()
    return var.val


def _tensor(value: Any) -> Any:
    """Arrays as tensors; lists, words and single numbers as Python's."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return value


def _argument(given: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(given, (list, tuple)):
        return [_argument(one, values) for one in given]
    return None if given is None else values[given]


def _numbers(value: Any) -> list[int]:
    """A tensor, or a list of tensors, of whole numbers."""
    return [int(one) for one in (value.reshape(-1) if isinstance(value, Tensor) else value)]


def _flags(value: Any, count: int) -> list[bool]:
    return [False] * count if value is None else [bool(one) for one in value.reshape(-1)]


def _padding(a: Arguments) -> list[int]:
    """Of a convolution or a pooling over rows and columns, as `F.pad` takes it."""
    if a["pad_type"] == "valid":
        return [0, 0, 0, 0]
    if a["pad_type"] != "custom":
        raise CheckpointError(f"padding {a['pad_type']} cannot be checked")
    top, bottom, left, right = _numbers(a["pad"])
    return [left, right, top, bottom]


def _conv(a: Arguments) -> Tensor:
    x = F.pad(a["x"], _padding(a))
    return F.conv2d(
        x, a["weight"], a.get("bias"), _numbers(a["strides"]), 0, _numbers(a["dilations"]), int(a.get("groups", 1))
    )


def _max_pool(a: Arguments) -> Tensor:
    x = F.pad(a["x"], _padding(a), value=-torch.inf)
    return F.max_pool2d(x, _numbers(a["kernel_sizes"]), _numbers(a["strides"]), ceil_mode=bool(a["ceil_mode"]))


def _scaled(a: Arguments) -> list[int]:
    """Height and width by factors: Core ML rounds down, so a factor with a rounding error may lose a row."""
    factors = np.array([a["scale_factor_height"], a["scale_factor_width"]], np.float32)
    return [int(side) for side in np.floor(np.array(a["x"].shape[-2:], np.float32) * factors)]


def _upsample_bilinear(a: Arguments) -> Tensor:
    aligned = bool(a["align_corners"])
    if a.get("half_pixel_centers") is not None and bool(a["half_pixel_centers"]) == aligned:
        raise CheckpointError("bilinear upsampling from pixels' corners cannot be checked")
    return F.interpolate(a["x"], _scaled(a), mode="bilinear", align_corners=aligned)


def _slice_by_index(a: Arguments) -> Tensor:
    x, begin, end = a["x"], _numbers(a["begin"]), _numbers(a["end"])
    strides = _numbers(a["stride"]) if a.get("stride") is not None else [1] * x.ndim
    from_first, to_last = _flags(a.get("begin_mask"), x.ndim), _flags(a.get("end_mask"), x.ndim)
    single = _flags(a.get("squeeze_mask"), x.ndim)
    for axis, side in enumerate(x.shape):
        # As Python's slices: negative positions count from the end.
        start = None if from_first[axis] else begin[axis]
        stop = None if to_last[axis] else end[axis]
        chosen = [begin[axis] % side] if single[axis] else list(range(side))[start : stop : strides[axis]]
        x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    for axis in reversed([axis for axis, one in enumerate(single) if one]):
        x = x.squeeze(axis)
    return x


def _pad(a: Arguments) -> Tensor:
    amounts = _numbers(a["pad"])
    pairs = [amounts[at : at + 2] for at in range(0, len(amounts), 2)]
    mode = str(a["mode"])
    flat = [amount for pair in reversed(pairs) for amount in pair]
    if mode == "constant":
        return F.pad(a["x"], flat, value=float(a["constant_val"]))
    while len(flat) > 4 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return F.pad(a["x"], flat, mode)


def _split(a: Arguments) -> tuple[Tensor, ...]:
    axis = int(a["axis"])
    if a.get("split_sizes") is not None:
        return a["x"].split(_numbers(a["split_sizes"]), axis)
    return a["x"].chunk(int(a["num_splits"]), axis)


def _gather(a: Arguments) -> Tensor:
    x, indices, axis = a["x"], a["indices"].long(), int(a["axis"])
    axis = axis % x.ndim
    if int(a.get("batch_dims") or 0):
        raise CheckpointError("gather by batches cannot be checked")
    flat = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return flat.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _layer_norm(a: Arguments) -> Tensor:
    x, axes = a["x"], _numbers(a["axes"])
    if [axis % x.ndim for axis in axes] != list(range(x.ndim - len(axes), x.ndim)):
        raise CheckpointError("layer norm over inner axes cannot be checked")
    return F.layer_norm(x, [x.shape[axis] for axis in axes], a.get("gamma"), a.get("beta"), float(a["epsilon"]))


def _matmul(a: Arguments) -> Tensor:
    x = a["x"].mT if bool(a["transpose_x"]) else a["x"]
    return x @ (a["y"].mT if bool(a["transpose_y"]) else a["y"])


def _gelu(a: Arguments) -> Tensor:
    modes = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
    return F.gelu(a["x"], approximate=modes[str(a.get("mode") or "EXACT")])


def _clip(a: Arguments) -> Tensor:
    return a["x"].clamp(float(a["alpha"]), float(a["beta"]))


def _concat(a: Arguments) -> Tensor:
    if a.get("interleave") is not None and bool(a["interleave"]):
        raise CheckpointError("interleaved concatenation cannot be checked")
    return torch.cat([torch.atleast_1d(value) for value in a["values"]], int(a["axis"]))  # sizes are single numbers


def _reduced(function: Callable[..., Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda a: function(a["x"], _numbers(a["axes"]), keepdim=bool(a["keep_dims"]))


def _squeeze(a: Arguments) -> Tensor:
    axes: Iterable[int] = sorted((axis % a["x"].ndim for axis in _numbers(a["axes"])), reverse=True)
    x: Tensor = a["x"]
    for axis in axes:
        x = x.squeeze(axis)
    return x


def _expand_dims(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    for axis in sorted(axis % (x.ndim + len(_numbers(a["axes"]))) for axis in _numbers(a["axes"])):
        x = x.unsqueeze(axis)
    return x


_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}
_KNOWN: dict[str, Callable[[Arguments], Tensor | tuple[Tensor, ...]]] = {
    "add": lambda a: a["x"] + a["y"],
    "sub": lambda a: a["x"] - a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "real_div": lambda a: a["x"] / a["y"],
    "maximum": lambda a: torch.maximum(a["x"], a["y"]),
    "minimum": lambda a: torch.minimum(a["x"], a["y"]),
    "cast": lambda a: a["x"].to(_TYPES[str(a["dtype"])]),
    "clip": _clip,
    "concat": _concat,
    "conv": _conv,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "leaky_relu": lambda a: F.leaky_relu(a["x"], float(a["alpha"])),
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "pad": _pad,
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], int(a["upscale_factor"])),
    "pixel_unshuffle": lambda a: F.pixel_unshuffle(a["x"], int(a["downscale_factor"])),
    "prelu": lambda a: F.prelu(a["x"], a["alpha"]),
    "reduce_l2_norm": _reduced(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "relu": lambda a: F.relu(a["x"]),
    "relu6": lambda a: F.relu6(a["x"]),
    "reshape": lambda a: a["x"].reshape(_numbers(a["shape"])),
    "reverse": lambda a: a["x"].flip(_numbers(a["axes"])),
    "rsqrt": lambda a: torch.rsqrt(a["x"] + float(a["epsilon"])),
    "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.int32),
    "sigmoid": lambda a: torch.sigmoid(a["x"]),
    "silu": lambda a: F.silu(a["x"]),
    "slice_by_index": _slice_by_index,
    "softmax": lambda a: a["x"].softmax(int(a["axis"])),
    "split": _split,
    "sqrt": lambda a: a["x"].sqrt(),
    "square": lambda a: a["x"].square(),
    "squeeze": _squeeze,
    "stack": lambda a: torch.stack(list(a["values"]), int(a["axis"])),
    "tile": lambda a: a["x"].repeat(_numbers(a["reps"])),
    "transpose": lambda a: a["x"].permute(_numbers(a["perm"])),
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": lambda a: F.interpolate(a["x"], _scaled(a), mode="nearest"),
}

"""What a dataset of images is, and how any dataset is asked for a sample so that it repeats."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from basicsr.data.sampling import SampleKey
from basicsr.utils import randomness
from basicsr.utils.color_util import bgr2ycbcr
from basicsr.utils.errors import DataError, MachineError, OptionsError, UserError
from basicsr.utils.img_util import img2tensor, to_float32
from basicsr.utils.name_lists import printable

_MACHINES_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """A dataset whose random choices all come from the generator that it is handed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns sample `index`: `lq`, `lq_path`, and where there are HR images `gt`, `gt_path`.

        Images are float32 (C, H, W), RGB in [0, 1].
        """

    def load_pixels(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """As `load`, for training batches, where images may also be uint8 in [0, 255] for `Batch.to` to scale."""
        return self.load(index, rng)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.load(index, randomness.generator(index, "sample"))


class PatchDataset(ImageDataset):
    """A dataset whose training patches may be of another size with every sample, as progressive training has them."""

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator, gt_size: int | None = None) -> dict[str, Any]:
        """As `ImageDataset.load`; `gt_size` is the side of the HR patch, None for the dataset's own."""

    def load_pixels(self, index: int, rng: np.random.Generator, gt_size: int | None = None) -> dict[str, Any]:
        """As `ImageDataset.load_pixels`."""
        return self.load(index, rng, gt_size)


def load_sample(dataset: Dataset[Any], key: SampleKey, pixels: bool = False) -> dict[str, Any]:
    """Loads a sample of any map-style dataset as a function of its key alone.

    A dataset written for BasicSR draws from the global generators of Python, numpy and torch: these are
    seeded by the key for the length of the call, and put back as they were.

    Args:
        dataset: any map-style dataset.
        key: of the sample.
        pixels: take what the dataset's `load_pixels` gives, where it has one that belongs to its `load`.

    Raises:
        OptionsError: the key says how large a patch to take, and the dataset is no `PatchDataset`.
        DataError: the sample's images cannot be read or do not fit, or a file has gone; it names them.
        MachineError: memory or open files ran out.
        RuntimeError: the dataset raised anything else; it names the sample, and has what was raised as its cause.
    """
    try:
        return _load(dataset, key, pixels)
    except UserError:
        raise
    except MemoryError as error:
        raise MachineError(
            f"no memory was left for {sample_name(dataset, key.index)}; lower num_worker_per_gpu or batch_size_per_gpu"
        ) from error
    except OSError as error:
        what = f"cannot read {sample_name(dataset, key.index)}: {error.filename or ''} {error.strerror or error}"
        message = " ".join(what.split())
        if error.errno in _MACHINES_ERRORS:
            raise MachineError(f"{message}; lower num_worker_per_gpu") from error
        raise DataError(f"{message}; check the path and the disk") from error
    except Exception as error:
        raise RuntimeError(
            f"{sample_name(dataset, key.index)} could not be loaded: {type(error).__name__}: {error}"
        ) from error


def sample_name(dataset: Any, index: int) -> str:
    """What to call a sample in errors: its number, and its files where the dataset lists them as BasicSR's do."""
    name = f"sample {index} of {type(dataset).__name__}"
    paths = getattr(dataset, "paths", None)
    if not isinstance(paths, Sequence) or not 0 <= index < len(paths):
        return name
    entry = paths[index]
    files = [str(file) for file in entry.values()] if isinstance(entry, Mapping) else [str(entry)]
    return printable(f"{name} ({', '.join(files)})")


def _load(dataset: Dataset[Any], key: SampleKey, pixels: bool) -> dict[str, Any]:
    if not isinstance(dataset, ImageDataset) and key.gt_size is None:
        with randomness.seeded_global_state(key.seed):
            return dataset[key.index]
    asked: Any = dataset if key.gt_size is None else _patches_of(dataset)
    load = asked.load_pixels if pixels and _gives_pixels(asked.__class__) else asked.load
    size = () if key.gt_size is None else (key.gt_size,)
    return load(key.index, randomness.generator(key.seed, "sample"), *size)


@cache
def _gives_pixels(kind: type) -> bool:
    """Whether the class that has `load_pixels` knows the `load` in force: one derived from it may have changed that."""
    pixels, load = (next(owner for owner in kind.__mro__ if name in vars(owner)) for name in ("load_pixels", "load"))
    return issubclass(pixels, load)


def check_patches(dataset: Dataset[Any]) -> None:
    """Raises OptionsError where a dataset's patches are of one size for good."""
    _patches_of(dataset)


def _patches_of(dataset: Dataset[Any]) -> PatchDataset:
    if not isinstance(dataset, PatchDataset):
        raise OptionsError(
            f"gt_sizes: {type(dataset).__name__} has patches of one size; use PairedImageDataset, derive the class from"
            " basicsr.data.base.PatchDataset, or remove gt_sizes, mini_batch_sizes and iters"
        )
    return dataset


class TensorConversion:
    """From a decoded image to a network's input: scale to [0, 1], take Y if asked for, reorder, normalise.

    Args:
        color: 'y' for the luma channel alone (BT.601), None for RGB.
        mean: subtracted from each channel, in [0, 1]; None for 0.
        std: divides each channel then; None for 1.

    Raises:
        OptionsError: `mean` or `std` has another number of entries than the image will have channels.
    """

    def __init__(self, color: str | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self._y_only = color == "y"
        channels = 1 if self._y_only else 3
        self._mean = _per_channel("mean", mean, channels)
        self._std = _per_channel("std", std, channels)

    def pixels(self, img: np.ndarray) -> torch.Tensor:
        """As `__call__`, but where 8-bit RGB is only to be scaled: uint8 (3, H, W) of `img`'s values.

        These may lie in the memory of `img`.
        """
        if img.dtype != np.uint8 or self._y_only or self._mean is not None or self._std is not None:
            return self(img)
        return rgb_tensor(img)

    def __call__(self, img: np.ndarray) -> torch.Tensor:
        """Converts (H, W, 3), BGR, uint8 or uint16, to float32 (C, H, W)."""
        pixels = to_float32(img)
        if self._y_only:
            pixels = bgr2ycbcr(pixels, y_only=True)[..., None]
        tensor = img2tensor(pixels)
        if self._mean is not None:
            tensor = tensor - self._mean
        return tensor if self._std is None else tensor / self._std


def rgb_tensor(img: np.ndarray) -> torch.Tensor:
    """(H, W, 3), BGR, uint8 or uint16, as a tensor (3, H, W), RGB, of the same type; its pixels lie side by side."""
    rgb = img[..., ::-1]
    if not rgb.flags.c_contiguous:
        rgb = cv2.cvtColor(img, cv2.COLOR_BGR2RGB) if img.flags.c_contiguous else np.ascontiguousarray(rgb)
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _per_channel(name: str, values: Sequence[float] | None, channels: int) -> torch.Tensor | None:
    if values is None:
        return None
    if len(values) != channels:
        raise OptionsError(f"{name} must have {channels} entries, one for each channel, got {list(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)

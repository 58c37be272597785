"""What a dataset of images is, and how any dataset is asked for a sample so that it repeats.

With `skip_bad_images`, a sample i that cannot be loaded is replaced by sample i + 1, or the next one that can, around
the end to the beginning; seed and patch size stay those of the position. So the sample depends on its key and on which
files are bad, not on workers, ranks, or how often a run was resumed.
"""

from __future__ import annotations

import errno
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, cached_property, wraps
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from basicsr.data.checks.inspection import without_name
from basicsr.data.storage import StoredImages, stored_images
from basicsr.files.images import img2tensor, to_float32
from basicsr.utils import randomness
from basicsr.utils.color_util import bgr2ycbcr
from basicsr.utils.errors import DataError, MachineError, OptionsError, UserError
from basicsr.utils.text import printable

_MACHINES_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Of the sample that `load_sample` asks a `__getitem__` for; else a sample's number is its seed.
_SEED: ContextVar[int | None] = ContextVar("seed of the sample", default=None)


Color = Literal["y", "gray"]


@dataclass(frozen=True)
class SampleKey:
    """Which image to load, the seed of its random choices, and the side of the HR patch (None: the dataset decides)."""

    index: int
    seed: int
    gt_size: int | None = None


class Skipped(NamedTuple):
    """A sample that cannot be used: its index in the dataset, and 'path: reason' of one of its images."""

    sample: int
    note: str


def taking_opt(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates a dataset's `__init__`: it may also be called as BasicSR's are, with one mapping `opt`.

    Of `opt` it takes what it has a parameter for, and raises OptionsError where a required key is missing. Either way
    the dataset has the attributes that classes derived from BasicSR's use: `opt`, `mean`, `std`, `filename_tmpl`,
    `gt_folder`, `lq_folder`, `file_client` (None), and `io_backend_opt`, from which a FileClient can be made.
    """
    parameters = dict(list(inspect.signature(init).parameters.items())[1:])
    defaults = {name: parameter.default for name, parameter in parameters.items()}

    @wraps(init)
    def initialise(self: Any, opt: Mapping[str, Any] | None = None, **given: Any) -> None:
        if opt is not None:
            given = {**{name: opt[name] for name in defaults if name in opt}, **given}
            required = [name for name, default in defaults.items() if default is inspect.Parameter.empty]
            if missing := [name for name in required if name not in given]:
                raise OptionsError(f"{type(self).__name__} needs {', '.join(missing)} in its options")
        filled = {**defaults, **given}
        self.opt = opt if opt is not None else filled
        self.mean, self.std, self.filename_tmpl = (filled.get(name) for name in ("mean", "std", "filename_tmpl"))
        given_folders = {role: filled.get(f"dataroot_{role}") for role in ("lq", "gt")}
        folders = {role: folder for role, folder in given_folders.items() if folder is not None}
        self.lq_folder, self.gt_folder = folders.get("lq"), folders.get("gt")
        self.file_client = None
        self.io_backend_opt = dict(filled["io_backend"])
        if self.io_backend_opt.get("type") == "lmdb" and all(isinstance(folder, str) for folder in folders.values()):
            self.io_backend_opt |= {"db_paths": list(folders.values()), "client_keys": list(folders)}
        init(self, **given)

    return initialise


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """A dataset whose random choices all come from the generator that it is handed.

    If `load` has a parameter `pixels`, False by default, training passes True: then images may also be uint8 in
    [0, 255], for `Batch.to` to scale. A derived class written for BasicSR has its own `__getitem__`, which is used.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns sample `index`: `lq`, `lq_path`, and where there are HR images `gt`, `gt_path`.

        Images are float32 (C, H, W), RGB in [0, 1].
        """

    def begin_training(self, on_gpu: bool) -> None:
        """Called before training loads samples; `on_gpu` says whether it runs on a GPU."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = _SEED.get()
        return self.load(index, randomness.generator(index if seed is None else seed, "sample"))


class PatchDataset(ImageDataset):
    """A dataset whose training patches may be of another size with every sample, as progressive training has them."""

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator, gt_size: int | None = None) -> dict[str, Any]:
        """As `ImageDataset.load`; `gt_size` is the side of the HR patch, None for the dataset's own."""


def load_sample(dataset: Dataset[Any], key: SampleKey, pixels: bool = False) -> dict[str, Any]:
    """Loads a sample of any map-style dataset as a function of its key alone; with `pixels`, 8-bit images as uint8.

    A dataset written for BasicSR draws from the global generators of Python, numpy and torch: these are
    seeded by the key for the length of the call, and put back as they were. Raises OptionsError where the key has a
    patch size and the dataset's patches are of one size; a UserError of the dataset's, and DataError for files,
    MachineError for memory, RuntimeError for anything else, all of which name the sample.
    """
    try:
        if key.gt_size is not None:
            check_patches(dataset)
        if isinstance(dataset, ImageDataset) and _is_asked_by_load(dataset):
            size = () if key.gt_size is None else (key.gt_size,)
            form = {"pixels": True} if pixels and _takes_pixels(type(dataset).load) else {}
            return dataset.load(key.index, randomness.generator(key.seed, "sample"), *size, **form)
        token = _SEED.set(key.seed)
        try:
            with randomness.seeded_global_state(key.seed):
                return dataset[key.index]
        finally:
            _SEED.reset(token)
    except UserError:
        raise
    except Exception as error:
        name = sample_name(dataset, key.index)
        if isinstance(error, MemoryError):
            memory = f"no memory was left for {name}; lower num_worker_per_gpu or batch_size_per_gpu"
            raise MachineError(memory) from error
        if isinstance(error, OSError):
            message = " ".join(f"cannot read {name}: {error.filename or ''} {error.strerror or error}".split())
            if error.errno in _MACHINES_ERRORS:
                raise MachineError(f"{message}; lower num_worker_per_gpu") from error
            raise DataError(f"{message}; check the path and the disk") from error
        raise RuntimeError(f"{name} could not be loaded: {type(error).__name__}: {error}") from error


def load_or_replace(
    dataset: Dataset[Any], key: SampleKey, limit: int, bad: Mapping[int, Sequence[str]], pixels: bool = False
) -> tuple[dict[str, Any], list[Skipped]]:
    """Loads a sample, or the next good one; raises DataError after `limit` bad ones. `bad` ones are not tried."""
    if limit == 0:
        return load_sample(dataset, key, pixels), []
    length = len(dataset)  # type: ignore[arg-type]
    tried = min(length, limit + 1)
    skipped: list[Skipped] = []
    for step in range(tried):
        index = (key.index + step) % length
        if index in bad:
            skipped += [Skipped(index, note) for note in bad[index]]
            continue
        try:
            return load_sample(dataset, replace(key, index=index), pixels), skipped
        except DataError as error:
            skipped.append(Skipped(index, _note(dataset, index, str(error))))
    raise DataError(
        f"{sample_name(dataset, key.index)} and the {tried - 1} after it cannot be loaded, and skip_bad_images is"
        f" {limit}; the first is {skipped[0].note}"
    )


def _note(dataset: Any, index: int, message: str) -> str:
    """'path: reason', where the path is that of the image that the message is about, or else the sample's first."""
    stored = stored_images(dataset)
    if stored is None:
        return f"{sample_name(dataset, index)}: {message}"
    labels = [stored.label(role, index) for role in stored.files]
    for label in labels:
        if (reason := without_name(message, label)) != message:
            return f"{label}: {reason}"
    return f"{labels[0]}: {message}"


def sample_name(dataset: Any, index: int) -> str:
    """What to call a sample in errors: its number, and its files where the dataset lists them as BasicSR's do."""
    name = f"sample {index} of {type(dataset).__name__}"
    paths = getattr(dataset, "paths", None)
    if not isinstance(paths, Sequence) or not 0 <= index < len(paths):
        return name
    entry = paths[index]
    files = [str(file) for file in entry.values()] if isinstance(entry, Mapping) else [str(entry)]
    return printable(f"{name} ({', '.join(files)})")


def check_patches(dataset: Dataset[Any]) -> None:
    """Raises OptionsError if a dataset's patches are all of one size."""
    if not isinstance(dataset, PatchDataset) or not _is_asked_by_load(dataset):
        raise OptionsError(
            f"gt_sizes: {type(dataset).__name__} has patches of one size; use PairedImageDataset, derive the class from"
            " basicsr.data.base.PatchDataset with a `load` instead of `__getitem__`, or remove gt_sizes,"
            " mini_batch_sizes and iters"
        )


def _is_asked_by_load(dataset: ImageDataset) -> bool:
    return type(dataset).__getitem__ is ImageDataset.__getitem__


@cache
def _takes_pixels(load: Callable[..., Any]) -> bool:
    return "pixels" in inspect.signature(load).parameters


class EvaluationDataset(Dataset[dict[str, Any]]):
    """A dataset whose items depend on their index alone, whatever generators it draws from."""

    def __init__(self, dataset: Dataset[Any], length: int) -> None:
        self._dataset, self._length = dataset, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return load_sample(self._dataset, SampleKey(index, seed=index))

    def restored(self, images: torch.Tensor) -> torch.Tensor:
        """Images (..., C, H, W) in [0, 1] again: x std + mean where the dataset normalises, as BasicSR's do."""
        for name, change in (("std", torch.mul), ("mean", torch.add)):
            values = getattr(self._dataset, name, None)
            if isinstance(values, Sequence) and len(values) == images.shape[-3]:
                images = change(images, torch.tensor(values, dtype=images.dtype).view(-1, 1, 1).to(images.device))
        return images

    def stored_images(self) -> StoredImages | None:
        """Where the images lie, where the dataset says so; else None."""
        return stored_images(self._dataset)

    @cached_property
    def names(self) -> list[str] | None:
        """What results call the images, no two alike, where the dataset says so; else None."""
        stored = self.stored_images()
        return None if stored is None else stored.titles("lq" if "lq" in stored.files else stored.names)

    @property
    def paths(self) -> Any:
        """The files of each item, where the dataset keeps such a list as BasicSR's do; else None."""
        return getattr(self._dataset, "paths", None)


class TensorConversion:
    """From a decoded image to a network's input: scale to [0, 1], take one channel if asked for, reorder, normalise.

    `color` is None for RGB, 'gray' for one channel, of a gray image its values as they are stored, of a colour image
    0.299 R + 0.587 G + 0.114 B, rounded to the image's whole numbers, or 'y' for Y of YCbCr (BT.601), which lies in
    16/255 to 235/255 and which BasicSR takes. Images of another number of `channels` than 3 are bands, taken as they
    are, without `color`. Each channel, in [0, 1], becomes (x - mean) / std; raises OptionsError
    where `mean` or `std` has another number of entries than the image will have channels.
    """

    def __init__(
        self, color: Color | None, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int = 3
    ) -> None:
        if color is not None and channels != 3:
            raise OptionsError(f"color: {color} makes one channel of colours; images of {channels} bands have none")
        self.only_scales = color != "y" and mean is None and std is None
        """Whether nothing but scaling is left to do once there is one channel, if there shall be."""
        self._color, channels = color, channels if color is None else 1
        per_channel: list[torch.Tensor | None] = []
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise OptionsError(f"{name} must have {channels} entries, one for each channel, got {list(values)}")
            per_channel.append(None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))
        self._mean, self._std = per_channel

    def __call__(self, img: np.ndarray, pixels: bool = False) -> torch.Tensor:
        """Converts (H, W, 3), BGR, (H, W, 1), or bands, uint8, uint16, or float32 in [0, 1], to float32 (C, H, W).

        With `pixels`, 8-bit RGB, gray or bands that only needs scaling stays uint8, and may lie in the memory of `img`.
        """
        if self._color == "gray" and img.shape[2] == 3:
            img = gray_values(img)
        if pixels and img.dtype == np.uint8 and self.only_scales:
            return rgb_tensor(img)
        values = to_float32(img)
        if self._color == "y":
            values = bgr2ycbcr(values, y_only=True)[..., None]
        tensor = img2tensor(values)
        if self._mean is not None:
            tensor = tensor - self._mean
        return tensor if self._std is None else tensor / self._std


def gray_values(img: np.ndarray) -> np.ndarray:
    """(H, W, 3), BGR, uint8, uint16 or float32, as (H, W, 1); three equal channels give their value."""
    return cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2GRAY)[..., None]  # its weights add up to one


def rgb_tensor(img: np.ndarray) -> torch.Tensor:
    """(H, W, 3), BGR, as (C, H, W), RGB, or other channels in their order, of one type; a pixel's lie side by side."""
    rgb = img[..., ::-1] if img.shape[2] == 3 else img
    if not rgb.flags.c_contiguous:
        rgb = cv2.cvtColor(img, cv2.COLOR_BGR2RGB) if img.flags.c_contiguous else np.ascontiguousarray(rgb)
    return torch.from_numpy(rgb).permute(2, 0, 1)

"""A teacher's outputs for the training images, kept as files: how they are coded, named and listed.

A cache is a folder with a 16-bit PPM file for each HR image, of its size and by its name, and `cache.json`, which says
whose outputs they are and of which LR images, or of which HR images and how LR images were made of them. LR images
alone give files their own names. A value x is stored as

    v = round((clip(x, -1/2, 3/2) + 1/2) / 2 * 65535),    x ~ v / 65535 * 2 - 1/2,

so in steps of 3.1e-5, of which an 8-bit level has 128. The range is wider than that of images because the outputs of
networks are: they swing beyond black and white at edges. PPM is not compressed, so that training reads no more of a
file than a patch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from basicsr.data.storage import ImageRoot, OpenImage, StoredImages, stamp_of
from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import leaves_folder, read_regular
from basicsr.utils.errors import DataError
from basicsr.utils.text import printable

FORMAT: Literal[1] = 1
MANIFEST = "cache.json"
COMMAND = "python scripts/cache_teacher.py -opt FILE"
LOWEST, HIGHEST = -0.5, 1.5
STEP = (HIGHEST - LOWEST) / 65535

_LARGEST_MANIFEST = 1 << 30
_DIGITS = 12  # of a SHA-256, in messages
_ROWS = 64


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class CacheKey(_Record):
    """What must be equal for two caches of the same images to hold the same outputs.

    `teacher` is the SHA-256 of its weights' file, of which `param_key` and `strict` say what is loaded; `network` has
    its resolved options, {type: auto} for spandrel's; `tile` is None if images were run whole while memory lasted.
    """

    teacher: str
    param_key: str | None
    strict: bool
    network: dict[str, Any]
    architecture: str
    scale: int
    self_ensemble: bool
    precision: str
    tile: int | None = None
    tile_overlap: int | None = None

    def __str__(self) -> str:
        precision = "float32" if self.precision == "none" else self.precision
        times = ", self-ensemble" if self.self_ensemble else ""
        return f"{self.architecture} x{self.scale} (SHA-256 {shortened(self.teacher)}, {precision}{times})"


class CachedImage(_Record):
    """One image by its name, `ImageRoot.key`; the fields of its output are None while there is none.

    `lq` and `sha256` are digests of the LR image's and the output's file; where LR images are made, `lq` is that of the
    HR image's file. `clipped` counts values at the range's ends.
    """

    name: str
    lq: str
    size: tuple[int, int] | None = None
    bytes: int | None = None
    sha256: str | None = None
    clipped: int | None = None


class Manifest(_Record):
    """Content of `cache.json`; `complete` is False while the cache is being made, images are in the dataset's order.

    `degradation` has the steps that made LR images of HR images, with all their options; None of LR images from files.
    """

    format: Literal[1] = FORMAT
    complete: bool
    key: CacheKey
    degradation: tuple[dict[str, Any], ...] | None = None
    range: tuple[float, float] = (LOWEST, HIGHEST)
    images: tuple[CachedImage, ...] = Field(min_length=1)


def encode(image: torch.Tensor) -> np.ndarray:
    """The codes of an output: float32 (3, H, W), RGB, finite, to uint16 (H, W, 3), BGR."""
    codes = np.empty((*image.shape[1:], 3), np.uint16)
    for top in range(0, len(codes), _ROWS):  # float64 of all at once would be large
        wide = image[:, top : top + _ROWS].clamp(LOWEST, HIGHEST).double()
        rows = ((wide - LOWEST) / (HIGHEST - LOWEST) * 65535).round()
        codes[top : top + _ROWS] = rows.flip(0).permute(1, 2, 0).numpy()
    return codes


def decode(codes: torch.Tensor) -> torch.Tensor:
    """The outputs, float32, from codes of any type that has 0 to 65535."""
    return codes.to(torch.float32) * STEP + LOWEST


def count_clipped(codes: np.ndarray) -> int:
    """How many codes are the smallest or the largest possible; about as many values were beyond the range."""
    return int(np.count_nonzero(codes == 0) + np.count_nonzero(codes == 65535))


def cached_file(folder: str | Path, name: str) -> str:
    """Path of the output called `name`."""
    return os.path.join(folder, f"{name}.ppm")


def cached_names(stored: StoredImages) -> list[str]:
    """The names of all outputs of a dataset, in its order; raises DataError where two are equal or one is no name."""
    seen: dict[str, str] = {}
    for path in stored.files[stored.names]:
        name = stored.roots[stored.names].key(path)
        if leaves_folder(name) or any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{printable(path)} cannot name a file of a teacher's cache; rename the image")
        if name in seen:
            raise DataError(f"{printable(f'{seen[name]} and {path}')} differ in their endings only; rename one")
        seen[name] = path
    return list(seen)


def open_output(folder: str, name: str, size: tuple[int, int]) -> OpenImage:
    """The output called `name`, whose pixels are codes; raises DataError unless it has that height and width."""
    path = cached_file(folder, name)
    output = ImageRoot(folder).open(path)
    if (output.size, output.depth) != (size, 16):
        found, wanted = (" x ".join(map(str, entry)) for entry in (output.size, size))
        raise DataError(
            f"cannot read image {path}: it is {found} of {output.depth} bits, the image's output would be"
            f" {wanted} of 16; make it by {COMMAND} --output {folder}"
        )
    return output


def read_manifest(folder: str | Path) -> Manifest:
    """Reads `cache.json`, of unknown origin; raises DataError where it is missing, damaged, or of another format."""
    path = Path(folder) / MANIFEST
    again = f"make it by {COMMAND} --output ANOTHER_FOLDER"
    if (size_of_file(path) or 0) > _LARGEST_MANIFEST:
        raise DataError(f"{path} is too large for the list of a teacher's cache; {again}")
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no teacher's cache: it has no {MANIFEST}; {again}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {reason}; check the path") from error
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            found = printable(str(first["input"])[:20])
            raise DataError(
                f"{folder} is a teacher's cache of format {found}, this version reads {FORMAT}; {again}"
            ) from error
        where = ".".join(map(str, first["loc"])) or "the beginning"
        raise DataError(f"{path} is damaged (at {printable(where[:80])}); {again}") from error
    for image in manifest.images:
        if manifest.complete and None in (image.size, image.bytes, image.sha256, image.clipped):
            raise DataError(f"{path} is damaged (it says nothing of some outputs); {again}")
        if manifest.range != (LOWEST, HIGHEST) or leaves_folder(image.name):
            raise DataError(f"{path} is damaged (range or names); {again}")
    return manifest


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Writes `cache.json`, an image to a line; raises CheckpointError where that is not possible."""
    head = manifest.model_dump(mode="json", exclude={"images"})

    def write(file: BinaryIO) -> None:
        file.write((json.dumps(head, indent=1)[:-2] + ',\n "images": [').encode())
        for number, image in enumerate(manifest.images):
            file.write(f"{',' if number else ''}\n  {image.model_dump_json(exclude_none=True)}".encode())
        file.write(b"\n ]\n}\n")

    write_atomically(Path(folder) / MANIFEST, write)


def key_differences(cached: CacheKey, wanted: CacheKey) -> list[str]:
    """What differs between two keys, such as "scale 2 instead of 4"."""
    differences = []
    for name in CacheKey.model_fields:
        theirs, ours = getattr(cached, name), getattr(wanted, name)
        if theirs == ours or name == "architecture":
            continue
        if name == "teacher":
            name, theirs, ours = "SHA-256 of the teacher's weights", shortened(theirs), shortened(ours)
        differences.append(f"{name} {theirs} instead of {ours}")
    return differences


def input_role(stored: StoredImages) -> Literal["lq", "gt"] | None:
    """The role of the images whose files tell a teacher's inputs: LR, or HR of which LR is made; None without both."""
    if "lq" in stored.files:
        return "lq"
    return None if stored.degradation is None else "gt"


def image_difference(
    manifest: Manifest,
    degradation: Sequence[Mapping[str, Any]] | None,
    names: Sequence[str],
    digests: Sequence[str],
) -> str | None:
    """How a cache's images first differ from a dataset's, in words; None where they are the same.

    `degradation` is that of the dataset's `StoredImages`, and `digests` are those of its files of `input_role`.
    """
    cached, made = manifest.images, manifest.degradation
    if made != (None if degradation is None else tuple(degradation)):
        return f"its LR images are {_origin(made)}, the dataset's {_origin(degradation)}"
    theirs = [image.name for image in cached]
    if len(theirs) != len(names):
        lacking = min(set(names) - set(theirs), default=None) or min(set(theirs) - set(names), default="")
        where = "the dataset" if lacking in theirs else "it"
        return f"it is of {len(theirs)} images, the dataset has {len(names)}; {printable(lacking)} is not in {where}"
    for number, (other, own) in enumerate(zip(theirs, names, strict=True)):
        if other != own:
            return f"image {number} is {printable(other)} in it and {printable(own)} in the dataset"
    changed = [image.name for image, digest in zip(cached, digests, strict=True) if image.lq != digest]
    if changed:
        what = "the LR image of" if made is None else "the HR image"
        return f"{what} {printable(changed[0])} is another than it was then{_and_more(changed)}"
    return None


def _origin(steps: Sequence[Mapping[str, Any]] | None) -> str:
    return "files" if steps is None else printable(f"made of HR images by {json.dumps(list(steps))}")


def output_fault(folder: str | Path, images: Sequence[CachedImage]) -> str | None:
    """Which output is missing or of another length than it was written with, in words; None where all are there."""
    bad = [image for image in images if size_of_file(cached_file(folder, image.name)) != image.bytes]
    if not bad:
        return None
    found = size_of_file(cached_file(folder, bad[0].name))
    what = "is missing" if found is None else f"has {found:,d} bytes instead of {bad[0].bytes or 0:,d}"
    return f"{printable(bad[0].name)}.ppm {what}{_and_more([image.name for image in bad])}"


def size_of_file(path: str | Path) -> int | None:
    """Bytes of a file; None where there is none."""
    stamp = stamp_of(path)
    return stamp and stamp[0]


def shortened(digest: str) -> str:
    """The beginning of a digest, for messages."""
    return f"{printable(digest[:_DIGITS])}..."


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1:,d} more)" if len(names) > 1 else ""

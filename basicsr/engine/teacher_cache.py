"""Makes a teacher's cache: runs it once over the training images and keeps its outputs.

A file for each image, written whole or not at all, then `cache.json`, which makes the cache complete. An interrupted
run goes on: the key and the digests of all LR images are written first, and are compared then.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from basicsr.archs.luma import ON_LUMA, LumaNetwork
from basicsr.config.schema import Options, thaw
from basicsr.data.base import TensorConversion
from basicsr.data.checks.checking import check_images, dataset_warnings, progress, report
from basicsr.data.checks.notes import digests_of
from basicsr.data.degradations.base import cache_fault
from basicsr.data.loading import build_dataset
from basicsr.data.storage import ImageRoot, StoredImages, stored_images
from basicsr.data.teacher_outputs import (
    MANIFEST,
    CachedImage,
    CacheKey,
    Manifest,
    cached_file,
    cached_names,
    count_clipped,
    encode,
    image_difference,
    input_role,
    key_differences,
    read_manifest,
    size_of_file,
    write_manifest,
)
from basicsr.data.transforms import check_hr_patch_fits
from basicsr.engine.inputs import digest_of_file
from basicsr.engine.process.command import StopRequest
from basicsr.engine.run_folder import LOCK, FolderLock
from basicsr.engine.startup_checks import check_teacher
from basicsr.files.atomic_files import TEMPORARY, NoSpaceError, write_atomically
from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import Content, HeaderError
from basicsr.files.images import encode_ppm, imfrombytes
from basicsr.inference.runner import ImageRunner
from basicsr.inference.trials import for_colours
from basicsr.models import load_network, recognise_networks
from basicsr.utils.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    NonFiniteError,
    OptionsError,
    Preempted,
    UserError,
)
from basicsr.utils.logger import WarningRemark
from basicsr.utils.pass_times import faster_precision, warn_if_slow
from basicsr.utils.precision import Amp, Precision
from basicsr.utils.randomness import seed_everything
from basicsr.utils.text import readable

_THREADS = 8
_BYTES = 6  # of a pixel: three channels of 16 bits
_NOTICE = "stopping after this image; Ctrl+C again stops at once"


@dataclass(frozen=True)
class CacheSettings:
    """How the teacher is run.

    `amp` 'none' is float32, 'auto' the precision of an existing cache, else what is faster. Images are cut into tiles
    of at most `tile` LR pixels a side, None runs them whole while memory lasts; a tile sees `tile_overlap` LR pixels
    beyond each edge, None for what the network needs.
    """

    device: torch.device
    self_ensemble: bool = False
    amp: Amp | Literal["auto"] = "none"
    tile: int | None = None
    tile_overlap: int | None = None


@dataclass(frozen=True)
class CacheSummary:
    """A finished cache: `new` of its `images` were made now, `clipped` of its `values` are at the ends of the range."""

    folder: Path
    key: CacheKey
    images: int
    new: int
    bytes: int
    clipped: int
    values: int


def make_cache(
    options: Options,
    settings: CacheSettings,
    folder: Path | None,
    say: Callable[[str], None],
    *,
    dataset: str = "train",
) -> CacheSummary:
    """Runs the teacher of training options, without `teacher_cache`, over the training images of `datasets: DATASET`.

    `folder` None makes one beside the HR images, or LR images alone, which has their name, the teacher's and its
    digest's; `say` takes lines on what is done.

    Raises:
        OptionsError: the options have no trained teacher, or change the images' colours.
        DataError: images cannot be used, or `folder` holds something else or another cache.
        CheckpointError: there is no room, or it cannot be written.
        Interrupted, Preempted: a signal came; what is done is kept.
    """
    device = settings.device
    inputs = _training_images(options, dataset, say)
    stored, degradation = inputs.stored, inputs.degradation
    names = cached_names(stored)
    if degradation is not None:
        say(f"LR images are made of HR images: {list(degradation)}")
    bar = partial(progress, f"Reading {'LR' if inputs.role == 'lq' else 'HR'} images", sys.stderr.isatty())
    digests = digests_of(inputs.files, inputs.root, bar)
    seed_everything(options.manual_seed)  # for weights that strict_load_t: false may leave as they are made
    options, recognised = recognise_networks(options)
    network, remark = load_network(options, "t", device)
    for line in filter(None, (*recognised, remark)):
        say(f"warning: {line}" if isinstance(line, WarningRemark) else line)
    network = for_colours(network)
    if isinstance(network, LumaNetwork):
        say(f"network_t: {ON_LUMA}")
    check_teacher(options, network, device)
    amps: tuple[Amp, ...] = ("bf16", "fp16", "none")
    keys = {amp: _key(options, network, settings, amp) for amp in amps}
    steps = [str(step["type"]) for step in degradation or ()]
    folders = {amp: folder or _default_folder(stored.roots[stored.names].folders, keys[amp], steps) for amp in amps}
    if settings.amp == "auto":
        # `auto` never chooses fp16, and goes on with a cache that was begun.
        begun = next((one for one in amps if one != "fp16" and _is_begun(folders[one], keys[one])), None)
        amp, why = (begun, "") if begun is not None else faster_precision(network.eval(), device)
        say(f"amp auto: {amp}{f'; {why}' if why else ', as the cache has it'}")
    else:
        amp = settings.amp
        for line in warn_if_slow(network.eval(), device, amp, f"--amp {amp}"):
            say(f"warning: {line}")
    key, folder = keys[amp], folders[amp]
    say(f"{folder}: {len(names):,d} outputs of {key}")

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(inputs.output_size, inputs.files))
    wanted = Manifest(
        complete=False,
        key=key,
        degradation=degradation,
        images=tuple(
            CachedImage(name=name, lq=digest, size=size)
            for name, digest, size in zip(names, digests, sizes, strict=True)
        ),
    )
    runner = ImageRunner(
        network,
        options.scale,
        device,
        tile=settings.tile,
        tile_overlap=settings.tile_overlap,
        self_ensemble=settings.self_ensemble,
        precision=Precision.of(device, amp),
        report=say,
    )
    with FolderLock(folder, "makes a teacher's cache there") as lock:
        found = _existing_outputs(folder, wanted)
        lock.take_inside()
        missing = [number for number, image in enumerate(found) if image is None]
        if missing:
            needed = sum(_BYTES * sizes[number][0] * sizes[number][1] for number in missing)
            if needed > (free := shutil.disk_usage(folder).free):
                raise NoSpaceError(
                    f"{folder} needs {readable(needed)} more, {readable(free)} are free; give another --output, or free"
                    " space"
                )
            write_manifest(folder, wanted)
            _run(folder, runner, inputs, wanted.images, missing, found)
        images = tuple(image for image in found if image is not None)
        if missing or not read_manifest(folder).complete:
            write_manifest(folder, wanted.model_copy(update={"complete": True, "images": images}))
            for path in folder.rglob(TEMPORARY):  # of killed processes: no other one has the folder
                if path.name.split(".")[-2].isdigit():
                    with suppress(OSError):
                        path.unlink()
    values = sum(3 * height * width for height, width in sizes)
    size, clipped = (sum(getattr(image, name) for image in images) for name in ("bytes", "clipped"))
    return CacheSummary(folder, key, len(images), len(missing), size, clipped, values)


@dataclass(frozen=True)
class _Inputs:
    """The LR images of a training set, from files or made of HR images: `role` says of which the files are."""

    dataset: Any
    stored: StoredImages
    role: Literal["lq", "gt"]

    @property
    def root(self) -> ImageRoot:
        return self.stored.roots[self.role]

    @property
    def files(self) -> Sequence[str]:
        return self.stored.files[self.role]

    @property
    def degradation(self) -> tuple[dict[str, Any], ...] | None:
        """The steps that make LR images; None where these are files."""
        return None if self.stored.degradation is None else tuple(map(dict, self.stored.degradation))

    def output_size(self, name: str) -> tuple[int, int]:
        """Height and width of the teacher's output for a file's image."""
        scale = self.stored.scale
        with self.root.opened(name) as source:
            height, width = read_header(source).size
        if self.role == "lq":
            return height * scale, width * scale
        size = height // scale * scale, width // scale * scale
        check_hr_patch_fits(size, scale, self.root.label(name))
        return size

    def read(self, number: int, digest: str) -> np.ndarray:
        """An LR image (h, w, 3), BGR; raises DataError where it is damaged, or its file is no longer of the digest."""
        name = self.files[number]
        content, label = self.root.content(name), self.root.label(name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{label} was changed while the cache was made; start again")
        pixels = imfrombytes(content, source=label)
        return pixels if self.role == "lq" else self.dataset.make_lq(pixels)


def _training_images(options: Options, key: str, say: Callable[[str], None]) -> _Inputs:
    """The images of a training set, all of which must be sound; warns of what else lies in their folders."""
    block = options.datasets[key]
    framework = {name: getattr(block, name) for name in ("name", "phase", "scale")}
    dataset: Any = build_dataset({"type": block.type, **block.arguments, **framework})
    stored = stored_images(dataset)
    if stored is None or (role := input_role(stored)) is None:
        raise OptionsError(
            f"datasets: {key}: {block.type} does not say where its images lie (stored_images); use PairedImageDataset"
        )
    if changed := [name for name in ("color", "mean", "std") if block.arguments.get(name) is not None]:
        raise OptionsError(
            f"datasets: {key}: a teacher's cache has RGB in [0, 1]; remove {changed[0]}, or train without a cache"
        )
    if fault := cache_fault(stored.degradation or ()):
        raise OptionsError(f"datasets: {key}: a teacher's cache {fault}; train without one")
    if (bands := stored.roots[role].channels) != 3:
        raise OptionsError(
            f"datasets: {key}: a teacher's cache has RGB in [0, 1], these images have {bands} bands; train without one"
        )
    checked = block if block.check_images != "none" else block.model_copy(update={"check_images": "headers"})
    if bad := check_images(dataset, checked):
        raise DataError(report(bad, len(dataset), block.name))
    for remark in dataset_warnings(block.name, stored, "train"):
        say(f"warning: {remark}")
    return _Inputs(dataset, stored, role)


def _key(options: Options, network: torch.nn.Module, settings: CacheSettings, amp: str) -> CacheKey:
    path = options.path.pretrain_network_t
    if path is None or options.network_t is None:
        raise OptionsError("path: pretrain_network_t is required: a cache is of a trained teacher")
    return CacheKey(
        teacher=digest_of_file(Path(path)),
        param_key=options.path.param_key_t,
        strict=options.path.strict_load_t,
        network=thaw(options.network_t),
        architecture=str(getattr(network, "architecture", options.network_t["type"])),
        scale=options.scale,
        self_ensemble=settings.self_ensemble,
        precision=amp,
        tile=settings.tile,
        tile_overlap=settings.tile_overlap,
    )


def _default_folder(folders: Sequence[str], key: CacheKey, steps: Sequence[str]) -> Path:
    """Beside the HR images, or LR images alone, the first of several: DIV2K/HR_EDSR_x4_1a2b3c4d_self_ensemble.

    Where `steps` make LR images, with their names: DIV2K/HR_MatlabBicubic_EDSR_x4_1a2b3c4d.
    """
    root = Path(folders[0])
    if root.name in ("", ".."):
        root = Path(os.path.abspath(root))
    architecture = re.sub(r"[^\w.-]+", "-", key.architecture)
    parts = [root.name.removesuffix(".lmdb"), *([f"and_{len(folders) - 1}_more"] if len(folders) > 1 else [])]
    parts += [*steps, architecture, f"x{key.scale}", key.teacher[:8]]
    parts += ["self_ensemble"] if key.self_ensemble else []
    parts += [key.precision] if key.precision != "none" else []
    return root.parent / "_".join(parts)


def _is_begun(folder: Path, key: CacheKey) -> bool:
    return (folder / MANIFEST).is_file() and not key_differences(read_manifest(folder).key, key)


def _existing_outputs(folder: Path, wanted: Manifest) -> list[CachedImage | None]:
    """What a folder has of the cache, image by image; makes the folder, DataError where it holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(path.name != LOCK for path in folder.iterdir()):
            return [None] * len(wanted.images)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}; give another --output") from error
    if not (folder / MANIFEST).exists():
        raise DataError(f"{folder} is not empty and no teacher's cache; give another --output")
    known = read_manifest(folder)
    differing = key_differences(known.key, wanted.key)
    names, digests = ([getattr(image, name) for image in wanted.images] for name in ("name", "lq"))
    other = image_difference(known, wanted.degradation, names, digests)
    if other and not differing:
        differing = [other]
    if differing:
        raise DataError(
            f"{folder} is another cache: {'; '.join(differing)}; remove it if it is of no use any more, or give another"
            " --output"
        )
    images = known.images if known.complete else wanted.images
    found = (_existing(folder, image) for image in images)
    return list(progress("Looking at what is there", sys.stderr.isatty(), found, len(images)))


def _existing(folder: Path, image: CachedImage) -> CachedImage | None:
    """The entry of an output that is there, also one that an interrupted run left; None where it is not whole."""
    file = cached_file(folder, image.name)
    length = size_of_file(file)
    if length is None or image.bytes not in (None, length):
        return None
    if image.bytes is not None:
        return image
    content = Path(file).read_bytes()
    try:
        header = read_header(Content(content))
    except HeaderError:
        return None
    if (header.size, header.channels, header.largest, header.end) != (image.size, 3, 65535, len(content)):
        return None
    start = header.end - _BYTES * header.height * header.width
    codes = np.frombuffer(content, np.uint16, offset=start)  # the ends are the same in either byte order
    return _entry(image, len(content), hashlib.sha256(content).hexdigest(), codes)


def _entry(image: CachedImage, length: int, digest: str, codes: np.ndarray) -> CachedImage:
    return image.model_copy(update={"bytes": length, "sha256": digest, "clipped": count_clipped(codes)})


def _run(
    folder: Path,
    runner: ImageRunner,
    inputs: _Inputs,
    wanted: Sequence[CachedImage],
    missing: Sequence[int],
    found: list[CachedImage | None],
) -> None:
    """Makes the outputs whose numbers are `missing`, noting them in `found`; one is written while the next is made."""
    pending: Future[None] | None = None

    def write(number: int, output: torch.Tensor) -> None:
        found[number] = _write(folder, wanted[number], output)

    bar = tqdm(missing, "Teacher", total=len(wanted), initial=len(wanted) - len(missing), unit="image", disable=None)
    with StopRequest(_NOTICE) as stop, ThreadPoolExecutor(1) as writer, bar:
        for number in bar:
            if stop:
                break
            output = _output(runner, inputs.read(number, wanted[number].lq), inputs.root.label(inputs.files[number]))
            if pending is not None:
                pending.result()
            pending = writer.submit(write, number, output)
        if pending is not None:
            pending.result()
    done = sum(image is not None for image in found)
    if done < len(found):
        kind = Interrupted if stop.signal is not None and stop.signal.name == "SIGINT" else Preempted
        raise kind(f"stopped: {done:,d} of {len(found):,d} outputs are there; the same command goes on")


def _output(runner: ImageRunner, pixels: np.ndarray, label: str) -> torch.Tensor:
    """I_T of an LR image (h, w, 3), BGR, called `label` in errors: float32 (3, sH, sW)."""
    try:
        output = runner(TensorConversion(None, None, None)(pixels).unsqueeze(0))[0]
    except UserError as error:
        error.extend(before=f"{label}: ")
        raise
    if not torch.isfinite(output).all():
        raise NonFiniteError(
            f"{label}: network_t puts out numbers that are not finite: its weights are damaged, or the"
            " precision is too low for it; use --amp none"
        )
    return output


def _write(folder: Path, image: CachedImage, output: torch.Tensor) -> CachedImage:
    codes = encode(output)
    content = encode_ppm(codes)
    path = Path(cached_file(folder, image.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {path.parent}: {error.strerror}") from error
    digest, length = write_atomically(path, lambda file: file.write(content))
    return _entry(image, length, digest, codes)

"""What a run reads: the files of weights that it is made from, its images, and the teacher's cache made of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from basicsr.archs import vgg_arch, vqgan_arch
from basicsr.config.component_blocks import is_auto
from basicsr.config.schema import DatasetOptions, Options, thaw
from basicsr.data.checks.checking import (
    BadImage,
    check_images,
    dataset_warnings,
    find_misaligned_pairs,
    progress,
    report,
)
from basicsr.data.checks.notes import digests_of, files_digest, fingerprint
from basicsr.data.storage import stored_images
from basicsr.data.teacher_outputs import (
    COMMAND,
    MANIFEST,
    CacheKey,
    cached_names,
    image_difference,
    input_role,
    key_differences,
    output_fault,
    read_manifest,
    shortened,
)
from basicsr.engine.process.distributed import RankInfo, require_equal
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.dist_util import gather_objects, raise_together
from basicsr.utils.errors import CheckpointError, DataError, OptionsError, UserError
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METHOD_REGISTRY, Registry

TEACHER_CACHE = "datasets.train.teacher_cache"
_SECTIONS = ("path", "train", "network_g", "network_t", "network_d")
_NO_WEIGHTS = ("path.resume_state", "path.experiments_root", "path.results_root")


def input_digests(options: Options) -> dict[str, str]:
    """SHA-256 of each file of weights that the options name, by the option: teachers', VGG's, those to start from.

    A VGG or VQGAN that is not named is the file that its loss finds by itself. A teacher's cache counts by its list,
    which has the digests of the outputs. Raises CheckpointError where a file cannot be read.
    """
    return {option: digest_of_file(file) for option, file in input_files(options).items()}


def digest_of_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal, cached while the file is unchanged; raises CheckpointError."""
    try:
        found = file.stat()
        return _cached_digest(file, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error


def texts_in(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts of nested options, by their whole names."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from texts_in(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from texts_in(entry, f"{key}[{number}]")


def input_files(options: Options) -> dict[str, Path]:
    """The files of weights that the options name, or that their losses find by themselves, by option."""
    found = {}
    for section in _SECTIONS:
        for option, value in texts_in(thaw(getattr(options, section)), section):
            if option not in _NO_WEIGHTS and not option.endswith(".type") and Path(value).is_file():
                found[option] = Path(value)
    blocks: dict[str, tuple[Registry, Mapping[str, Any]]] = {}
    if (train := options.train) is not None:
        blocks = {f"train.distill.{name}": (METHOD_REGISTRY, block) for name, block in train.distill.items()}
        if train.perceptual_opt is not None:
            blocks["train.perceptual_opt"] = (LOSS_REGISTRY, train.perceptual_opt)
    for key, (registry, block) in blocks.items():
        parameters = inspect.signature(registry.get(block["type"])).parameters
        given = {**{name: parameter.default for name, parameter in parameters.items()}, **block}
        if given.get("vgg_weights", "") is None and (file := vgg_arch.local_weights(given["vgg_type"])) is not None:
            found[f"{key}.vgg_weights"] = file
        if given.get("vqgan_weights", "") is None and (file := vqgan_arch.local_weights()) is not None:
            found[f"{key}.vqgan_weights"] = file
    for key, folder in options.teacher_caches.items():
        if (manifest := Path(folder) / MANIFEST).is_file():
            found[f"datasets.{key}.teacher_cache"] = manifest
    return found


@lru_cache(maxsize=32)
def _cached_digest(file: Path, size: int, changed: int) -> str:
    return sha256_of(file)


def require_equal_images(datasets: Mapping[str, Any]) -> None:
    """Raises DataError where ranks, which need not read from one disk, have different images. All ranks must call."""
    require_equal(
        lambda: {
            f"{called}: {what}": value
            for called, dataset in datasets.items()
            for what, value in {**fingerprint(dataset), "files and their sizes": files_digest(dataset)}.items()
        }
    )


def check_datasets(
    entries: Sequence[tuple[Any, DatasetOptions]],
    rank_info: RankInfo,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[list[BadImage]], list[str]]:
    """Checks the images of datasets, each with its options, sharing them among ranks. All ranks must call.

    Images are looked at within the context `guard`, in which ranks do not wait for each other. Returns the bad images
    of each dataset that training may do without (`skip_bad_images`), and on rank 0 remarks for the log; raises
    DataError on all ranks where more of them than may be skipped cannot be used.
    """
    remarks: list[str] = []
    reports: list[str] = []
    left_out: list[list[BadImage]] = []
    for dataset, block in entries:
        mine: list[BadImage] = []
        failure: UserError | None = None
        try:
            with guard():
                stored = stored_images(dataset)
                if rank_info.is_master and stored is not None:
                    remarks += dataset_warnings(block.name, stored, block.phase)
                    if block.check_images != "none" and (fault := find_misaligned_pairs(stored)):
                        remarks.append(f"{block.name}: {fault}; scripts/data/check_dataset.py looks at all pairs")
                mine = check_images(dataset, block, rank=rank_info.rank, world_size=rank_info.world_size)
        except UserError as error:
            failure = error
        raise_together(failure)
        bad = sorted(image for found in gather_objects(mine) for image in found)
        samples = {image.index for image in bad}
        if len(samples) > (block.skip_bad_images if block.phase == "train" else 0):
            reports.append(report(bad, len(dataset), block.name))
        else:
            left_out.append(bad)
    if reports:
        bad_images = DataError("\n".join(reports))
        bad_images.known_to_all = True
        raise bad_images
    return left_out, list(dict.fromkeys(remarks))


def check_cache_key(options: Options, digests: Mapping[str, str]) -> CacheKey | None:
    """Whose outputs the caches of a run have, each set its own; None where the options name none.

    `digests` are the SHA-256 of the files of weights, by the option that names them. Raises DataError where a cache is
    unfinished, damaged, or of another teacher or scale than the options or another set's cache name.
    """
    keys = {folder: _key_of_cache(options, folder, digests) for folder in options.teacher_caches.values()}
    if not keys:
        return None
    first = next(iter(keys))
    for folder, key in keys.items():
        if differing := key_differences(key, keys[first]):
            raise DataError(
                f"teacher_cache {folder} is of another teacher than {first}: {differing[0]}; make one of the same by"
                f" {COMMAND} --output ANOTHER_FOLDER, and name that"
            )
    return keys[first]


def _key_of_cache(options: Options, folder: str, digests: Mapping[str, str]) -> CacheKey:
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(f"teacher_cache {folder} is unfinished; go on with it by {COMMAND} --output {folder}")
    key, path, difference = manifest.key, options.path, None
    if key.scale != options.scale:
        difference = f"scale {key.scale}, the options' scale is {options.scale}"
    elif path.pretrain_network_t is not None:
        option, loads = "path.pretrain_network_t", (path.param_key_t, path.strict_load_t)
        if key.teacher != digests[option]:
            theirs, ours = shortened(key.teacher), shortened(digests[option])
            difference = f"SHA-256 of its weights is {theirs}, that of {option} {ours}"
        elif (key.param_key, key.strict) != loads:
            theirs, ours = f"{key.param_key} and {key.strict}", f"{loads[0]} and {loads[1]}"
            difference = f"param_key_t and strict_load_t are {theirs}, the options' {ours}"
    # Of spandrel's networks, {type: auto}, no options are known.
    if difference is None and not (options.network_t is None or is_auto(options.network_t) or is_auto(key.network)):
        cached, given = map(ARCH_REGISTRY.with_defaults, (key.network, options.network_t))
        for name in sorted({*cached, *given}):
            if cached.get(name) != given.get(name):
                difference = f"its {name} is {cached.get(name)}, that of network_t {given.get(name)}"
                break
    if difference is not None:
        raise DataError(
            f"teacher_cache {folder} is of another teacher: {difference}; make one of this teacher by {COMMAND}"
            " --output ANOTHER_FOLDER, and name that"
        )
    return key


def check_cache_content(folder: str, dataset: Any) -> None:
    """Compares a cache's images with those of the dataset, and checks that all outputs exist.

    LR images, or HR images of which LR is made, are read where their SHA-256 is not known from an earlier start. Raises
    DataError where names, order or images are not those that it was made of, LR images are made in another way, or
    outputs are missing; OptionsError where the dataset does not say where its images lie.
    """
    stored = stored_images(dataset)
    if stored is None or (role := input_role(stored)) is None:
        raise OptionsError(
            f"teacher_cache: {type(dataset).__name__} does not say where its images lie (stored_images); use"
            " PairedImageDataset, or remove teacher_cache"
        )
    manifest, names = read_manifest(folder), cached_names(stored)
    bar = partial(progress, f"Comparing {'LR' if role == 'lq' else 'HR'} images", sys.stderr.isatty())
    digests = digests_of(stored.files[role], stored.roots[role], bar)
    if difference := image_difference(manifest, stored.degradation, names, digests):
        raise DataError(
            f"teacher_cache {folder} is of other images: {difference}; make one of these by {COMMAND} --output"
            " ANOTHER_FOLDER, and name that"
        )
    if fault := output_fault(folder, manifest.images):
        raise DataError(f"teacher_cache {folder}: {fault}; make what is missing by {COMMAND} --output {folder}")

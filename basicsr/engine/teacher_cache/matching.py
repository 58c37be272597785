"""Whether a teacher's cache is what a run asks for: of its teacher, its scale, and its images as they are now.

`check_key` runs before anything is built, `check_content` after that, both before anything is written.
`data/teacher_outputs.py` says what a cache is.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from basicsr.config.component_blocks import constructor_of, is_auto
from basicsr.config.schema import Options, thaw
from basicsr.data.checks import checking
from basicsr.data.checks.digests import digests_of
from basicsr.data.storage import stored_images
from basicsr.data.teacher_outputs import (
    COMMAND,
    CacheKey,
    cached_names,
    image_difference,
    output_fault,
    read_manifest,
    shortened,
)
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import ARCH_REGISTRY

_TEACHER = "path.pretrain_network_t"


def check_key(options: Options, digests: Mapping[str, str]) -> CacheKey | None:
    """Compares a cache's teacher and scale with those of the options, as far as these name any.

    Args:
        options: of the run.
        digests: SHA-256 of the files of weights, by the option that names them.

    Returns:
        Whose outputs the cache has; None where the options name no cache.

    Raises:
        DataError: the cache is unfinished, damaged, or of another teacher or scale.
    """
    folder = options.teacher_cache
    if folder is None:
        return None
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(f"teacher_cache {folder} is unfinished; go on with it by {COMMAND} --output {folder}")
    key, difference = manifest.key, None
    if key.scale != options.scale:
        difference = f"scale {key.scale}, the options' scale is {options.scale}"
    elif options.path.pretrain_network_t is not None:
        difference = _difference_in_weights(options, key, digests[_TEACHER])
    if difference is None and options.network_t is not None and not is_auto(options.network_t):
        difference = _difference_in_network(key.network, thaw(options.network_t))
    if difference is not None:
        raise DataError(
            f"teacher_cache {folder} is of another teacher: {difference}; make one of this teacher by {COMMAND}"
            " --output ANOTHER_FOLDER, and name that"
        )
    return key


def check_content(options: Options, dataset: Any) -> None:
    """Compares a cache's images with those of the dataset, and checks that all outputs exist.

    LR images whose SHA-256 is not known from an earlier start are read. Does nothing where the options name no cache.

    Raises:
        DataError: names, order or LR images are not those that the cache was made of, or outputs are missing.
        OptionsError: the dataset does not say where its images lie.
    """
    folder = options.teacher_cache
    if folder is None:
        return
    stored = stored_images(dataset)
    if stored is None or set(stored.files) != {"gt", "lq"}:
        raise OptionsError(
            f"teacher_cache: {type(dataset).__name__} does not say where its images lie (stored_images); use"
            " PairedImageDataset, or remove teacher_cache"
        )
    images = read_manifest(folder).images
    names = cached_names(stored)
    digests = digests_of(stored.files["lq"], stored.roots["lq"], partial(progress, "Comparing LR images"))
    if difference := image_difference(images, names, digests):
        raise DataError(
            f"teacher_cache {folder} is of other images: {difference}; make one of these by {COMMAND} --output"
            " ANOTHER_FOLDER, and name that"
        )
    if fault := output_fault(folder, images):
        raise DataError(f"teacher_cache {folder}: {fault}; make what is missing by {COMMAND} --output {folder}")


def progress(description: str, items: Iterator[Any], total: int) -> Iterator[Any]:
    """The items; at a terminal a bar shows them where it takes longer."""
    return checking.progress(description, sys.stderr.isatty(), items, total)


def _difference_in_weights(options: Options, key: CacheKey, digest: str) -> str | None:
    if key.teacher != digest:
        return f"SHA-256 of its weights is {shortened(key.teacher)}, that of {_TEACHER} {shortened(digest)}"
    if key.param_key != options.path.param_key_t:
        return f"param_key_t {key.param_key}, the options' is {options.path.param_key_t}"
    if key.strict != options.path.strict_load_t:
        return f"strict_load_t {key.strict}, the options' is {options.path.strict_load_t}"
    return None


def _difference_in_network(cached: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Where two blocks build different networks, in words."""
    if is_auto(cached):
        return None  # spandrel's; nothing is known of its options
    theirs, ours = _with_defaults(cached), _with_defaults(given)
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            return f"its {name} is {theirs.get(name)}, that of network_t {ours.get(name)}"
    return None


def _with_defaults(block: Mapping[str, Any]) -> dict[str, Any]:
    constructor = constructor_of(ARCH_REGISTRY, block)
    parameters = inspect.signature(constructor).parameters.values() if constructor is not None else ()
    defaults = {entry.name: entry.default for entry in parameters if entry.default is not inspect.Parameter.empty}
    plain: dict[str, Any] = json.loads(json.dumps({**defaults, **block}, default=str))
    return plain

"""experiments/NAME/record.json: what a run was made from, so that its result can be traced to files and versions."""

from __future__ import annotations

import datetime
import inspect
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import basicsr
from basicsr.archs import vgg_arch, vqgan_arch
from basicsr.config.schema import Options, thaw
from basicsr.data.teacher_outputs import MANIFEST
from basicsr.files.atomic_files import sha256_of, write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import LOSS_REGISTRY, METHOD_REGISTRY, Registry

RECORD = "record.json"
TEACHER_CACHE = "datasets.train.teacher_cache"
_SECTIONS = ("path", "train", "network_g", "network_t", "network_d")
_NO_WEIGHTS = ("path.resume_state", "path.experiments_root", "path.results_root")


def input_digests(options: Options) -> dict[str, str]:
    """SHA-256 of each file of weights that the options name, by the option: teachers', VGG's, those to start from.

    A VGG or VQGAN that is not named is the file that its loss finds by itself. A teacher's cache counts by its list,
    which has the digests of the outputs. Raises CheckpointError where a file cannot be read.
    """
    return {option: digest_of_file(file) for option, file in _files(options).items()}


def write_record(options: Options, iteration: int, facts: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Writes the record of a run that starts, or adds to it where the run goes on from `iteration`; on rank 0.

    `facts` are further plain values, such as its device, `digests` those of `input_digests`. Raises CheckpointError.
    """
    path = options.experiment_folder / RECORD
    start = {
        "at": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iteration": iteration,
        "command": sys.argv,
        "versions": {"basicsr": basicsr.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": platform.node(),
        **facts,
        "weights": {option: {"file": str(file), "sha256": digests[option]} for option, file in _files(options).items()},
    }
    earlier: Any = []
    if iteration:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            earlier = json.loads(read_regular(path))["starts"]
    starts = [*earlier, start] if isinstance(earlier, list) else [start]
    content = json.dumps({"name": options.name, "starts": starts}, indent=1).encode()
    write_atomically(path, lambda file: file.write(content))


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


def _files(options: Options) -> dict[str, Path]:
    found = {}
    for section in _SECTIONS:
        for option, value in texts_in(thaw(getattr(options, section)), section):
            if option not in _NO_WEIGHTS and not option.endswith(".type") and Path(value).is_file():
                found[option] = Path(value)
    # Files that losses take where none is named.
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
    if options.teacher_cache is not None and (manifest := Path(options.teacher_cache) / MANIFEST).is_file():
        found[TEACHER_CACHE] = manifest
    return found


@lru_cache(maxsize=32)
def _cached_digest(file: Path, size: int, changed: int) -> str:
    return sha256_of(file)

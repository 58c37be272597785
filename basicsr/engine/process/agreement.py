"""What all ranks of a run must have in common, and joining those that have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import basicsr
from basicsr.config.schema import DistOptions, Options, flat, thaw
from basicsr.engine.process.distributed import Launcher, RankInfo, distributed
from basicsr.engine.process.meeting import OPTIONS, Start, differences
from basicsr.utils.dist_util import gather_objects, get_dist_info, raise_together
from basicsr.utils.errors import DataError, UserError

_PACKAGE = Path(basicsr.__file__).parent


@contextmanager
def joined(
    launcher: Launcher, load: Callable[[], Sequence[Options]], flags: Mapping[str, Any]
) -> Iterator[tuple[Sequence[Options], RankInfo]]:
    """Loads the options, one for each scale, and joins the ranks if these and `flags` are the same on all."""
    options: Sequence[Options] = ()
    start = Start({}, {})
    try:
        options = load()
    except UserError as error:
        start = start._replace(failure=error)
    if launcher != "none":
        start = _start(options, flags, start.failure)
    params, num_gpu = (options[0].dist_params, options[0].num_gpu) if options else (DistOptions(), 0)
    timeouts = {"timeout": params.timeout, "join_timeout": params.join_timeout}
    with distributed(launcher, num_gpu, params.backend, params.port, **timeouts, start=start) as rank_info:
        yield options, rank_info


def _start(options: Sequence[Options], flags: Mapping[str, Any], failure: UserError | None) -> Start:
    named: dict[str, Any] = {}
    for one in options:
        named |= flat(thaw(one), f"x{one.scale}: " if len(options) > 1 else "")
    code: list[str | bytes] = []
    for file in sorted(_PACKAGE.rglob("*.py")):
        code += [file.relative_to(_PACKAGE).as_posix(), file.read_bytes()]
    facts = {
        "basicsr": basicsr.__version__,
        "PyTorch": torch.__version__,
        "code of basicsr (SHA-256 of its files)": digest_of(*code)[:12],
        **{name: str(value) for name, value in flags.items()},
        OPTIONS: digest_of(json.dumps(named, default=str)),
    }
    return Start(facts, named, failure)


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()


def weights_digest(module: nn.Module | None) -> str:
    """SHA-256 of a module's names, types, shapes and values; '' for None."""
    if module is None:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_equal(compute: Callable[[], Mapping[str, Any]]) -> None:
    """Raises DataError on all ranks unless `compute` returns the same plain values there. All must call."""
    if get_dist_info()[1] == 1:
        return
    values: Mapping[str, Any] = {}
    failure: UserError | None = None
    try:
        values = flat(compute())
    except UserError as error:
        failure = error
    raise_together(failure)
    if lines := differences(dict(enumerate(gather_objects(values))), "none"):
        listed = "\n  ".join(("the ranks do not work on the same:", *lines))
        disagreement = DataError(f"{listed}\ngive all of them the same files")
        disagreement.known_to_all = True
        raise disagreement

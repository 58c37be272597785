"""This process's rank, and what all ranks do together: all of them must call it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from basicsr.utils.errors import ForeignError, UserError

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


def get_dist_info() -> tuple[int, int]:
    """Returns (rank, world size); (0, 1) where no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def master_only(function: Function) -> Function:
    """Decorates `function` to run on rank 0 and to return None elsewhere."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if get_dist_info()[0] == 0 else None

    return wrapper  # type: ignore[return-value]


def gather_with_gradient(local: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Concatenates `local`, shape (B, ...), of all ranks in rank order: (world * B, ...), and the row of `local`.

    Gradients are summed over the ranks: with DDP's average, a loss averaged over each rank's queries has the gradients
    of one rank with the whole batch. All ranks must call it, with equal shapes.
    """
    if get_dist_info()[1] == 1:
        return local, 0
    return _GatherWithGradient.apply(local), dist.get_rank() * len(local)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order; small plain values only."""
    world_size = get_dist_info()[1]
    if world_size == 1:
        return [value]
    gathered = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered


def any_rank(flags: Sequence[bool] | torch.Tensor, device: torch.device) -> list[bool]:
    """Which of `flags` (bool, (N,)) are set on any rank, the same on all; one collective and one wait."""
    flags = torch.as_tensor(flags, dtype=torch.bool, device=device)
    if get_dist_info()[1] > 1:
        flags = flags.int()
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def on_master(action: Callable[[], Result]) -> Result:
    """Runs `action` on rank 0 and returns its plain value, or raises its UserError, on every rank."""
    outcome: Result | UserError | None = None
    if get_dist_info()[0] == 0:
        try:
            outcome = action()
        except UserError as error:
            outcome = error
    outcome = gather_objects(outcome)[0]
    if isinstance(outcome, UserError):
        outcome.known_to_all = True
        raise outcome
    return outcome


def synchronising(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Averages a module's gradients over ranks in the last micro-batch of an iteration only."""
    if last or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def raise_together(failure: Exception | None) -> None:
    """Raises a failure of any rank on all; one that no other rank caused goes first, bugs as `ForeignError`."""
    mine = failure
    if failure is not None and not isinstance(failure, UserError):
        mine = ForeignError(f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}")
    failures = [(rank, one) for rank, one in enumerate(gather_objects(mine)) if one is not None]
    if not failures:
        return
    rank, error = min(failures, key=lambda entry: not entry[1].first_hand)
    if get_dist_info()[1] > 1:
        error.extend(before=f"[rank {rank}] ")
    error.known_to_all = True
    raise error from (failure if isinstance(error, ForeignError) and rank == get_dist_info()[0] else None)

"""How the ranks of a run find each other: over a store, within bounded time, and only if all begin the same run."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch.distributed as dist

from basicsr.utils.errors import Interrupted, LostRankError, MachineError, OptionsError, Preempted, UserError

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
OPTIONS = "options"
"""The fact whose differences are listed by key."""

_FAILED, _FAILING = "failed", "failing"
_FAILING_SECONDS = 10.0  # to wait for others once a rank has said that it cannot begin
_LEAVING_SECONDS = 5.0
_NAME_SECONDS = 30.0  # names of new machines may take a while to be known
_POLL_SECONDS = 0.05
_NOTICE_SECONDS = 10.0
_MOST_SHOWN = 20
_MOST_RANKS = 1_000_000
_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


class LaunchedRank(NamedTuple):
    """What the launcher says of this process, and the address of rank 0."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


class Start(NamedTuple):
    """What a rank is about to begin: facts that must be the same on all ranks, one of which is a digest of `options`.

    `failure` says why this rank cannot begin.
    """

    facts: Mapping[str, str]
    options: Mapping[str, Any]
    failure: UserError | None = None


class RankFailure(NamedTuple):
    """What ended another rank, as that rank reports it."""

    rank: int
    exit_code: int
    message: str


def read_launched_rank(launcher: str, port: int | None) -> LaunchedRank:
    """Reads the variables of torchrun or srun; `port` replaces a missing MASTER_PORT. Raises MachineError."""
    names: tuple[str, ...] = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    remedy = "start with torchrun --nproc_per_node=N, or use --launcher none for one process"
    if launcher == "slurm":
        names, remedy = (*_SLURM.values(), "SLURM_NODELIST"), "start with srun"
    if missing := [name for name in names if not os.environ.get(name)]:
        raise MachineError(f"--launcher {launcher}: {', '.join(missing)} not set; {remedy}")
    if launcher == "slurm":
        os.environ.update({name: os.environ[theirs] for name, theirs in _SLURM.items()})
        os.environ["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or first_slurm_host(os.environ["SLURM_NODELIST"])
        os.environ["MASTER_PORT"] = os.environ.get("MASTER_PORT") or str(port or 29500)
    world_size = _number("WORLD_SIZE", 1, _MOST_RANKS)
    rank, local_rank = (_number(name, 0, world_size - 1) for name in ("RANK", "LOCAL_RANK"))
    return LaunchedRank(rank, local_rank, world_size, os.environ["MASTER_ADDR"], _number("MASTER_PORT", 1, 65535))


def restarts() -> int:
    """How many times torchrun has restarted the ranks of this job; MachineError if its variable is no number."""
    name = "TORCHELASTIC_RESTART_COUNT"
    return _number(name, 0, _MOST_RANKS) if name in os.environ else 0


def first_slurm_host(node_list: str) -> str:
    """The first host of a SLURM node list: 'gpu[03-05,9],cpu1' gives 'gpu03'."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", node_list)
    if match is None:
        raise MachineError(f"SLURM_NODELIST is '{node_list}': no host name in it")
    return match[1] + (match[2] or "")


def _number(name: str, smallest: int, largest: int) -> int:
    text = os.environ[name]
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII) or not smallest <= int(text) <= largest:
        allowed = f"must be a whole number from {smallest} to {largest}"
        raise MachineError(f"{name} is {text!r}: it {allowed}; the launcher sets it, start with torchrun or srun")
    return int(text)


class Meeting:
    """The ranks' store, with a prefix for each start: torchrun keeps its store over restarts; else rank 0 keeps one.

    Ranks wait `seconds` for each other; `group` distinguishes the meetings of one start. Raises MachineError if the
    address is unknown, nobody answers there, or the port is taken.
    """

    def __init__(self, launched: LaunchedRank, seconds: float, group: str) -> None:
        self.launched, self._seconds = launched, seconds
        self._end = time.monotonic() + seconds
        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._keeps_store = launched.rank == 0 and not by_torchrun
        self._prefix = f"{f'start {restarts()}, ' if by_torchrun else ''}group {group}"
        self._find_address()
        self.store = self.connect(keeps=self._keeps_store)

    def connect(self, keeps: bool = False) -> dist.Store:
        """A connection to the store, one for each thread; `keeps` creates the store itself."""
        left = datetime.timedelta(seconds=max(1.0, self._end - time.monotonic()))
        address, port = self.launched.address, self.launched.port
        try:
            store = dist.TCPStore(
                address, port, is_master=keeps, timeout=left, wait_for_workers=False, multi_tenant=keeps
            )
        except (RuntimeError, ValueError) as error:
            if "address already in use" in str(error).lower():
                raise MachineError(f"MASTER_PORT {port} is used by another program; choose another") from error
            raise self._unreachable() from error
        return dist.PrefixStore(self._prefix, store)

    def join(self, mine: Start, process: Sequence[Any]) -> list[Any]:
        """Returns every rank's `process`; raises UserError, on all ranks, unless all come and begin the same."""
        size = self.launched.world_size
        try:
            failure = self._announce(mine, process)
            if failure is not None and failure is not mine.failure:
                raise failure  # the others are of another launch, perhaps
            keys = [f"start/{rank}" for rank in range(size)]
            missing = self._wait_to_join(keys)
            starts = {rank: json.loads(self.store.get(key)) for rank, key in enumerate(keys) if rank not in missing}
            error = _joint_failure(starts) or failure or self._disagreement(starts)
            if error is None and missing:
                remedy = "start all of them, or raise dist_params: join_timeout"
                late = f"{_ranks(missing)} of {size} (WORLD_SIZE) did not come within {self._seconds:g} s"
                error = LostRankError(f"{late}; {remedy}")
            if error is not None:
                error.known_to_all = 0 not in missing
                raise error
            self.store.set_timeout(COLLECTIVE_TIMEOUT)
        except RuntimeError as error:
            store = f"the ranks' store at {self.launched.address}, port {self.launched.port}"
            raise LostRankError(f"{store}, has gone: rank 0 or torchrun ended") from error
        return [start["process"] for start in starts.values()]

    def failure(self, store: dist.Store | None = None) -> RankFailure | None:
        """What ended another rank, if it has reported; through another thread's connection if one is given."""
        store = store or self.store
        failure = RankFailure(*json.loads(store.get(_FAILED))) if store.check([_FAILED]) else None
        return None if failure is None or failure.rank == self.launched.rank else failure

    def leave(self, error: BaseException | None = None) -> None:
        """Reports why this rank ends, unless all know; the store's keeper waits a little for the others."""
        with suppress(RuntimeError):  # the store may be gone
            if error is not None and (isinstance(error, Preempted) or not getattr(error, "known_to_all", False)):
                report = json.dumps([self.launched.rank, *_report(error)])
                rank, _, message = json.loads(self.store.compare_set(_FAILED, "", report))
                if isinstance(error, UserError) and rank != self.launched.rank and message == str(error):
                    error.printed_elsewhere = not error.known_to_all
            self.store.set(f"left/{self.launched.rank}", "")
            if self._keeps_store:
                keys = [f"left/{rank}" for rank in range(self.launched.world_size)]
                end = time.monotonic() + _LEAVING_SECONDS
                while not self.store.check(keys) and time.monotonic() <= end:
                    time.sleep(_POLL_SECONDS)

    def _find_address(self) -> None:
        """Tries the address in Python first: a signal interrupts that, and it prints nothing."""
        address, port = self.launched.address, self.launched.port
        name_end = min(self._end, time.monotonic() + _NAME_SECONDS)
        while True:
            try:
                if self._keeps_store:
                    socket.getaddrinfo(address, port)
                else:
                    socket.create_connection((address, port), timeout=5).close()
                return
            except (socket.gaierror, UnicodeError) as error:
                if time.monotonic() > name_end:
                    unknown = f"MASTER_ADDR is {address!r}: no machine of this name is known ({error})"
                    raise MachineError(f"{unknown}; give the name or address of rank 0's machine") from error
            except OSError as error:
                if time.monotonic() > self._end:
                    raise self._unreachable() from error
            time.sleep(0.1)

    def _unreachable(self) -> MachineError:
        where = f"MASTER_ADDR {self.launched.address}, MASTER_PORT {self.launched.port}"
        remedy = "see that rank 0 runs there and no firewall is between, or raise dist_params: join_timeout"
        return MachineError(f"nobody answered at {where}, for {self._seconds:g} s; {remedy}")

    def _announce(self, mine: Start, process: Sequence[Any]) -> UserError | None:
        """Writes down what this rank begins; returns why it cannot begin, if so."""
        rank, size, failure = self.launched.rank, str(self.launched.world_size), mine.failure
        first = self.store.compare_set("WORLD_SIZE", "", size).decode()
        if self.store.add(f"count/{rank}", 1) > 1:
            failure = MachineError(f"RANK {rank} is given to two processes; give each its own, as torchrun does")
        elif first != size:
            failure = MachineError(f"WORLD_SIZE is {size} on rank {rank} and {first} on others; it must be the same")
        if failure is not None:
            self.store.set(_FAILING, "")
        self.store.set(f"options/{rank}", json.dumps(mine.options, default=str))
        self.store.set(f"beat/{rank}", "[0, 0, 0]")
        self.store.set("verdict", json.dumps({"silent": [], "stuck": False}))
        reason = None if failure is None else _report(failure)
        self.store.set(f"start/{rank}", json.dumps({"facts": mine.facts, "failure": reason, "process": process}))
        return failure

    def _wait_to_join(self, keys: list[str]) -> list[int]:
        """Waits until all keys are there, less long once a rank cannot begin; returns the indices of missing ones."""
        end = self._end
        notice = time.monotonic() + _NOTICE_SECONDS if self.launched.rank == 0 else math.inf
        while not self.store.check(keys) and (now := time.monotonic()) <= end:
            if self.store.check([_FAILING]):
                end = min(end, now + _FAILING_SECONDS)
            if now > notice:
                notice = math.inf
                print(f"waiting for other ranks, up to {self._seconds:g} s", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
        return [number for number, key in enumerate(keys) if not self.store.check([key])]

    def _disagreement(self, starts: Mapping[int, Mapping[str, Any]]) -> OptionsError | None:
        facts: dict[int, dict[str, str]] = {rank: start["facts"] for rank, start in starts.items()}
        lines = differences({rank: {**of_rank, OPTIONS: ""} for rank, of_rank in facts.items()}, "not known")
        digests = {rank: of_rank.get(OPTIONS) for rank, of_rank in facts.items()}
        if len(set(digests.values())) > 1:  # of ranks that have the same options one is read
            readers = {digest: rank for rank, digest in sorted(digests.items(), reverse=True)}
            read = {digest: json.loads(self.store.get(f"options/{rank}")) for digest, rank in readers.items()}
            lines += differences({rank: read[digest] for rank, digest in digests.items()}, "not set")
        if not lines:
            return None
        more = [f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
        listed = "\n  ".join(("the ranks do not begin the same run:", *lines[:_MOST_SHOWN], *more))
        return OptionsError(f"{listed}\ngive all of them the same options file, command line, code and packages")


def differences(values: Mapping[int, Mapping[str, Any]], missing: str) -> list[str]:
    """Lines such as 'train.optim_g.lr: 0.0002 on ranks 0 and 2, 0.0001 on rank 1', from each rank's named values."""
    lines = []
    for name in {name: None for of_rank in values.values() for name in of_rank}:
        ranks: defaultdict[str, list[int]] = defaultdict(list)
        for rank, of_rank in sorted(values.items()):
            text = " ".join(str(of_rank.get(name, missing)).split())
            length = 12 if re.fullmatch("[0-9a-f]{64}", text) else 200  # of a digest enough
            ranks[text if len(text) <= length else f"{text[:length]}..."].append(rank)
        if len(ranks) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on {_ranks(which)}" for value, which in ranks.items()))
    return lines


def _report(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code, "interrupted"
    return (error.exit_code, str(error)) if isinstance(error, UserError) else (1, type(error).__name__)


def _ranks(which: Sequence[int]) -> str:
    if len(which) == 1:
        return f"rank {which[0]}"
    names = [str(rank) for rank in which] if len(which) <= 10 else [*map(str, which[:9]), f"{len(which) - 9} more"]
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def _joint_failure(starts: Mapping[int, Mapping[str, Any]]) -> UserError | None:
    """Why ranks cannot begin, as one error that names them unless it is all of them."""
    by_reason: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for rank, start in starts.items():
        if start["failure"] is not None:
            by_reason[tuple(start["failure"])].append(rank)
    if not by_reason:
        return None
    all_alike = len(next(iter(by_reason.values()))) == len(starts)
    lines = [text if all_alike else f"[{_ranks(which)}] {text}" for (_, text), which in by_reason.items()]
    error = UserError("\n".join(lines))
    error.exit_code = next(iter(by_reason))[0]
    return error

"""How the ranks of a run find each other: over a store, within bounded time, and only if all begin the same run."""

from __future__ import annotations

import datetime
import json
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

from basicsr.engine.process.stop import Interrupted, Preempted
from basicsr.utils.errors import LostRankError, MachineError, OptionsError, UserError

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
OPTIONS = "options"
"""The fact whose differences are told by key."""

_FAILED, _FAILING = "failed", "failing"
_FAILING_SECONDS = 10.0  # how long others are waited for once a rank has said that it cannot begin
_LEAVING_SECONDS = 5.0
_NAME_SECONDS = 30.0  # names of new machines may take a while to be known
_POLL_SECONDS = 0.05
_SAID_AFTER = 10.0
_SHOWN = 20
_MOST_RANKS = 1_000_000
_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


class LaunchedRank(NamedTuple):
    """What the launcher says of this process, and where rank 0 is to be found."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


class Start(NamedTuple):
    """What a rank is about to begin.

    Attributes:
        facts: what must be the same on all ranks, in few words each.
        options: the options by their whole names, of which the fact `OPTIONS` is a digest.
        failure: why this rank cannot begin, or None.
    """

    facts: Mapping[str, str]
    options: Mapping[str, Any]
    failure: UserError | None = None


class Told(NamedTuple):
    """What ended another rank, which tells it itself."""

    rank: int
    exit_code: int
    message: str


def read_launched_rank(launcher: str, port: int | None) -> LaunchedRank:
    """Reads the variables of torchrun, or those of srun, and tells what is wrong with them.

    Args:
        launcher: 'pytorch' or 'slurm'.
        port: of rank 0, for slurm where MASTER_PORT is not set.

    Raises:
        MachineError: variables are missing, no numbers, or out of range.
    """
    if launcher == "slurm":
        _export_slurm(port)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise MachineError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with torchrun --nproc_per_node=N, or use"
            " --launcher none for one process"
        )
    world_size = _number("WORLD_SIZE", 1, _MOST_RANKS)
    rank, local_rank = (_number(name, 0, world_size - 1) for name in ("RANK", "LOCAL_RANK"))
    return LaunchedRank(rank, local_rank, world_size, os.environ["MASTER_ADDR"], _number("MASTER_PORT", 1, 65535))


def restarts() -> int:
    """How many times torchrun has started the ranks of this job anew.

    Raises:
        MachineError: its variable is no number.
    """
    return _number("TORCHELASTIC_RESTART_COUNT", 0, _MOST_RANKS, default=0)


def first_slurm_host(node_list: str) -> str:
    """The first host of a SLURM node list: 'gpu[03-05,9],cpu1' gives 'gpu03'."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", node_list)
    if match is None:
        raise MachineError(f"SLURM_NODELIST is '{node_list}': no host name in it")
    return match[1] + (match[2] or "")


def _export_slurm(port: int | None) -> None:
    """Translates srun's variables into those that torch.distributed reads."""
    names = (*_SLURM.values(), "SLURM_NODELIST")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise MachineError(f"--launcher slurm: {', '.join(missing)} not set; start with srun")
    for name, theirs in _SLURM.items():
        os.environ[name] = os.environ[theirs]
    os.environ.setdefault("MASTER_ADDR", first_slurm_host(os.environ["SLURM_NODELIST"]))
    os.environ.setdefault("MASTER_PORT", str(port or 29500))


def _number(name: str, smallest: int, largest: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII) or not smallest <= int(text) <= largest:
        raise MachineError(
            f"{name} is {text!r}: it must be a whole number from {smallest} to {largest}; the launcher sets it, start"
            " with torchrun or srun"
        )
    return int(text)


class Meeting:
    """The ranks' store, with names of its own for each start.

    torchrun keeps its store over restarts, and in it what ranks that are gone have written. Where it does not keep one,
    rank 0 does.

    Args:
        launched: of this process.
        seconds: how long to wait for the other ranks.
        group: tells apart the meetings of one start; all ranks must give the same.

    Attributes:
        launched: of this process.
        store: in which all keys are this start's.

    Raises:
        MachineError: the address is not known, nobody answers there, or the port is taken.
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
        """A connection to the store, one for each thread; `keeps` makes the store itself.

        Raises:
            MachineError: that is not possible.
        """
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
        """Waits for the other ranks, and sees to it that all begin the same.

        Args:
            mine: what this rank begins.
            process: plain values that say which process it is.

        Returns:
            `process` of every rank, in rank order.

        Raises:
            UserError: a rank cannot begin, on every rank.
            OptionsError: ranks would begin something else, on every rank.
            LostRankError: a rank does not come.
        """
        try:
            return self._join(mine, process)
        except RuntimeError as error:
            raise LostRankError(
                f"the ranks' store at {self.launched.address}, port {self.launched.port}, has gone: rank 0 or torchrun"
                " ended"
            ) from error

    def _join(self, mine: Start, process: Sequence[Any]) -> list[Any]:
        failure = self._announce(mine, process)
        if failure is not None and failure is not mine.failure:
            raise failure  # the others are of another launch, perhaps
        keys = [f"start/{rank}" for rank in range(self.launched.world_size)]
        missing = self._wait(keys)
        told = {rank: json.loads(self.store.get(key)) for rank, key in enumerate(keys) if rank not in missing}
        error = _failure_of({rank: said["failure"] for rank, said in told.items()}) or failure
        error = error or self._disagreement({rank: said["facts"] for rank, said in told.items()})
        if error is None and missing:
            error = LostRankError(
                f"{_ranks(missing)} of {self.launched.world_size} (WORLD_SIZE) did not come within {self._seconds:g} s;"
                " start all of them, or raise dist_params: join_timeout"
            )
        if error is not None:
            error.known_to_all = 0 not in missing
            raise error
        self.store.set_timeout(COLLECTIVE_TIMEOUT)
        return [said["process"] for said in told.values()]

    def failure(self, store: dist.Store | None = None) -> Told | None:
        """What ended another rank, as far as it has said so; by another connection to the store if one is given."""
        store = store or self.store
        said = json.loads(store.get(_FAILED)) if store.check([_FAILED]) else None
        return None if said is None or said[0] == self.launched.rank else Told(*said)

    def leave(self, error: BaseException | None = None) -> None:
        """Says that this rank needs the store no more, and why it ends; the keeper waits a little for the others.

        What all ranks end with need not be said. Of what several find out for themselves the first one tells.
        """
        with suppress(RuntimeError):  # the store may be gone
            if error is not None and (isinstance(error, Preempted) or not getattr(error, "known_to_all", False)):
                told = json.dumps([self.launched.rank, *_account(error)])
                rank, _, message = json.loads(self.store.compare_set(_FAILED, "", told))
                if isinstance(error, UserError) and rank != self.launched.rank and message == str(error):
                    error.told = not error.known_to_all
            self.store.set(f"left/{self.launched.rank}", "")
            if self._keeps_store:
                self._wait([f"left/{rank}" for rank in range(self.launched.world_size)], _LEAVING_SECONDS)

    def _find_address(self) -> None:
        """Asks for the address by Python's means, which a signal interrupts and which say nothing of themselves."""
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
                    raise MachineError(
                        f"MASTER_ADDR is {address!r}: no machine of this name is known ({error}); give the name or"
                        " address of rank 0's machine"
                    ) from error
            except OSError as error:
                if time.monotonic() > self._end:
                    raise self._unreachable() from error
            time.sleep(0.1)

    def _unreachable(self) -> MachineError:
        return MachineError(
            f"nobody answered at MASTER_ADDR {self.launched.address}, MASTER_PORT {self.launched.port}, for"
            f" {self._seconds:g} s; see that rank 0 runs there and no firewall is between, or raise dist_params:"
            " join_timeout"
        )

    def _announce(self, mine: Start, process: Sequence[Any]) -> UserError | None:
        """Writes down what this rank begins; why it cannot begin, if so."""
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
        reason = None if failure is None else [failure.exit_code, str(failure)]
        told = {"facts": dict(mine.facts), "failure": reason, "process": list(process)}
        self.store.set(f"start/{rank}", json.dumps(told))
        return failure

    def _wait(self, keys: Sequence[str], seconds: float | None = None) -> list[int]:
        """Waits until all keys are there; the numbers of those that are not in the end."""
        began = time.monotonic()
        end, said = self._end if seconds is None else began + seconds, seconds is not None or self.launched.rank != 0
        while not self.store.check(list(keys)):
            now = time.monotonic()
            if seconds is None and self.store.check([_FAILING]):
                end = min(end, now + _FAILING_SECONDS)
            if now > end:
                break
            if not said and now - began > _SAID_AFTER:
                said = True
                print(f"waiting for other ranks, up to {self._seconds:g} s", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
        return [number for number, key in enumerate(keys) if not self.store.check([key])]

    def _disagreement(self, facts: Mapping[int, Mapping[str, str]]) -> OptionsError | None:
        lines: list[str] = []
        for name in {name: None for told in facts.values() for name in told}:
            values = {rank: told.get(name, "not known") for rank, told in facts.items()}
            if len(set(values.values())) > 1:
                lines += self._options_that_differ(values) if name == OPTIONS else [difference(name, values)]
        if not lines:
            return None
        lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else lines
        return OptionsError(
            "\n  ".join(("the ranks do not begin the same run:", *lines))
            + "\ngive all of them the same options file, command line, code and packages"
        )

    def _options_that_differ(self, digests: Mapping[int, str]) -> list[str]:
        """By key; of ranks that have the same options one is read."""
        speakers = {digest: rank for rank, digest in sorted(digests.items(), reverse=True)}
        read = {digest: json.loads(self.store.get(f"options/{rank}")) for digest, rank in speakers.items()}
        lines = []
        for key in {key: None for options in read.values() for key in options}:
            values = {rank: shown(read[digest].get(key, "not set")) for rank, digest in digests.items()}
            if len(set(values.values())) > 1:
                lines.append(difference(key, values))
        return lines


def difference(name: str, values: Mapping[int, str]) -> str:
    """Such as 'train.optim_g.lr: 0.0002 on ranks 0 and 2, 0.0001 on rank 1'."""
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for rank, value in sorted(values.items()):
        ranks[value].append(rank)
    return f"{name}: " + ", ".join(f"{value} on {_ranks(which)}" for value, which in ranks.items())


def shown(value: Any) -> str:
    """A value in one line of bounded length."""
    text = " ".join(str(value).split())
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"{text[:12]}..."  # of a digest enough
    return text if len(text) <= 200 else f"{text[:200]}..."


def _account(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code, "interrupted"
    return (error.exit_code, str(error)) if isinstance(error, UserError) else (1, type(error).__name__)


def _ranks(which: Sequence[int]) -> str:
    if len(which) == 1:
        return f"rank {which[0]}"
    names = [str(rank) for rank in which] if len(which) <= 10 else [*map(str, which[:9]), f"{len(which) - 9} more"]
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def _failure_of(failures: Mapping[int, tuple[int, str] | None]) -> UserError | None:
    """Why ranks cannot begin, as one error that names them where it is not all of them."""
    by_reason: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for rank, failure in failures.items():
        if failure is not None:
            by_reason[failure[0], failure[1]].append(rank)
    if not by_reason:
        return None
    (code, _), first = next(iter(by_reason.items()))
    all_alike = len(first) == len(failures)
    error = UserError(
        "\n".join(message if all_alike else f"[{_ranks(which)}] {message}" for (_, message), which in by_reason.items())
    )
    error.exit_code = code
    return error

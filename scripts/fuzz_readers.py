"""Feeds damaged and forged files to the readers of options, meta files, images and checkpoints until told to stop.

python scripts/fuzz_readers.py --seconds 600
python scripts/fuzz_readers.py --reader checkpoints --seed 7 --out findings

A reader may take a file or refuse it in one line. Whatever else comes of it is a finding: another exception, the end
of the process, more than 10 seconds of the processor, more than a gigabyte. The file is then left in --out, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

ROOT = str(Path(__file__).resolve().parents[1])
for folder in (ROOT, str(Path(__file__).resolve().parent)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import numpy as np
from fuzz_cases import READERS, Reader

from basicsr.utils.errors import OptionsError, UserError

SECONDS_A_CASE: float = 10  # of the processor; four times as many by the clock, for what waits
MEMORY_A_CASE = 1 << 30
_BATCH = 200
_LONGEST_LINE = 20_000  # an error of a file of options may list many mistakes


@dataclass
class Count:
    """What came of a reader's cases.

    Attributes:
        accepted: the file was read.
        refused: a UserError was raised.
        findings: a line for each of the others, by its kind.
    """

    accepted: int = 0
    refused: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        """All of them; findings of one kind are counted once."""
        return self.accepted + self.refused + len(self.findings)


def fuzz(
    readers: Sequence[Reader], *, seed: int, seconds: float, cases: int, out: Path, batch: int = _BATCH
) -> list[Count]:
    """Runs cases of the readers in turn, batch by batch, each batch in a process of its own.

    Args:
        readers: what is tried.
        seed: of the cases: the same ones come in the same order.
        seconds: when to stop; infinite for never.
        cases: how many of each reader at most; 0 for any number.
        out: where the files of findings are left.
        batch: cases in a process.
    """
    counts = [Count() for _ in readers]
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for first in itertools.count(0, batch):
            if cases and first >= cases:
                break
            for reader, count in zip(readers, counts, strict=True):
                if time.monotonic() >= end:
                    return counts
                last = min(first + batch, cases) if cases else first + batch
                _run_batch(reader, seed, range(first, last), Path(folder), out, count)
                _progress(readers, counts)
    return counts


def case_of(reader: Reader, seed: int, number: int) -> tuple[str, bytes]:
    """Name and content of a case, which depend on nothing else."""
    label = int.from_bytes(hashlib.sha256(reader.name.encode()).digest()[:4], "little")
    return reader.make(np.random.default_rng([seed, label, number]))


def _run_batch(reader: Reader, seed: int, numbers: range, folder: Path, out: Path, count: Count) -> None:
    numbers_left = iter(numbers)
    context = multiprocessing.get_context("fork")
    while True:
        todo = list(numbers_left)
        if not todo:
            return
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(reader, seed, todo, folder, sender))
        child.start()
        sender.close()
        done, current = _listen(receiver, child, count, out, reader, seed)
        child.join()
        if done or current is None:
            if not done:
                count.findings["ended before its first case"] = f"{reader.name}: exit code {child.exitcode}"
            return
        kind = "took too long" if child.exitcode == -signal.SIGKILL else f"ended by {_name_of(child.exitcode)}"
        _found(count, out, reader, seed, current, kind, "the process ended")
        numbers_left = iter(range(current + 1, numbers.stop))


def _listen(
    receiver: Connection, child: multiprocessing.process.BaseProcess, count: Count, out: Path, reader: Reader, seed: int
) -> tuple[bool, int | None]:
    """Counts what a child says; whether it came to its end, and at which case it was."""
    current: int | None = None
    while True:
        # A timer in the child stops what runs Python's code; this, what does not.
        if not receiver.poll(4 * SECONDS_A_CASE + (20 if current is None else 0)):
            child.kill()
            return False, current
        try:
            number, kind, detail = receiver.recv()
        except EOFError:
            return False, current
        if kind == "begin":
            current = number
        elif kind == "end":
            return True, current
        elif kind == "accepted":
            count.accepted += 1
        elif kind == "refused":
            count.refused += 1
        else:
            _found(count, out, reader, seed, number, kind, detail)


class _TooLong(BaseException):
    """The alarm of a case; a reader that catches every Exception does not catch it."""


def _child(reader: Reader, seed: int, numbers: Sequence[int], folder: Path, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the batch
    signal.signal(signal.SIGPROF, _alarm)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # the parent says how it ended
    space = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if os.path.isdir("/proc/self")
        else 0
    )
    if space:
        resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY_A_CASE,) * 2)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.chdir(folder)
    for number in numbers:
        sender.send((number, "begin", ""))
        name, content = case_of(reader, seed, number)
        Path(name).write_bytes(content)
        kind, detail = _outcome(reader, Path(name))
        Path(name).unlink(missing_ok=True)
        sender.send((number, kind, detail))
    sender.send((-1, "end", ""))
    sender.close()
    os._exit(0)


def _outcome(reader: Reader, path: Path) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS_A_CASE)
    try:
        reader.read(path)
        return "accepted", ""
    except UserError as error:
        message = str(error)
        is_line = "\n" not in message or isinstance(error, OptionsError)  # of options, a line for each mistake
        if is_line and len(message) < _LONGEST_LINE and message.replace("\n", "").isprintable():
            return "refused", ""
        return f"{type(error).__name__} of odd lines", repr(message[:300])
    except _TooLong:
        return "took too long", ""
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
        return f"{type(error).__name__} at {where}", (str(error) or "").splitlines()[:1].__repr__()[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _alarm(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def _found(count: Count, out: Path, reader: Reader, seed: int, number: int, kind: str, detail: str) -> None:
    if kind in count.findings:
        return
    name, content = case_of(reader, seed, number)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{reader.name}-{seed}-{number}-{name}"
    path.write_bytes(content)
    count.findings[kind] = f"{reader.name}: {kind}: {detail} ({path})"
    print(f"finding: {count.findings[kind]}", file=sys.stderr, flush=True)


def _name_of(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _progress(readers: Sequence[Reader], counts: Sequence[Count]) -> None:
    if sys.stderr.isatty():
        shown = ", ".join(f"{reader.name} {count.cases}" for reader, count in zip(readers, counts, strict=True))
        print(f"\r{shown}", end="", file=sys.stderr, flush=True)


def summary(readers: Sequence[Reader], counts: Sequence[Count]) -> str:
    """A line for each reader, then one for each finding."""
    lines = [
        f"{reader.name:<12} {count.cases:>8} cases, {count.accepted} accepted, {count.refused} refused,"
        f" {len(count.findings)} findings"
        for reader, count in zip(readers, counts, strict=True)
    ]
    return "\n".join([*lines, *_findings(counts)])


def _findings(counts: Sequence[Count]) -> Iterator[str]:
    for count in counts:
        yield from count.findings.values()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--reader", default="all", choices=[*READERS, "all"], help="default: all, in turn")
    add("--seconds", type=float, default=float("inf"), help="when to stop (default: at Ctrl+C)")
    add("--cases", type=int, default=0, help="of each reader at most (default: any number)")
    add("--seed", type=int, default=0, help="of the cases (default: 0)")
    add("--out", default="fuzz_findings", metavar="DIR", help="where the files of findings are left")
    arguments = parser.parse_args(argv)
    names = list(READERS) if arguments.reader == "all" else [arguments.reader]
    readers = [READERS[name]() for name in names]
    counts: list[Count] = [Count() for _ in readers]
    try:
        counts = fuzz(
            readers,
            seed=arguments.seed,
            seconds=arguments.seconds,
            cases=arguments.cases,
            out=Path(arguments.out).absolute(),
        )
    except KeyboardInterrupt:
        print(file=sys.stderr)
    print(summary(readers, counts))
    return 1 if any(count.findings for count in counts) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))

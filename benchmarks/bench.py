"""What all rows share: how long to measure, whom to compare with, where to put things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.images import write_pairs
from benchmarks.machine import Peaks, measure_peaks
from benchmarks.workers import Worker, ours_command, reference_command

REFERENCE = "basicsr 1.4.2"
FALLBACK = "our float32 path"


@dataclass
class Bench:
    """The setting of a run.

    Args:
        rounds: how often each side is measured.
        quick: small networks, few images: whether everything runs, not how fast it is.
        threads: of each side.
        reference: Python of the environment with basicsr 1.4.2; None where there is none.
        folder: for images and runs, empty at first.
        benchmark: folder of Set5 and Set14.
        training_images: folder of photographs to train on, where figures of trained networks are compared.
        students: folder of trained students' checkpoints, their teacher, and folders of compress.py's runs (device).
        teacher: see there.
        compressed: see there.
    """

    rounds: int
    quick: bool
    threads: int
    reference: str | None
    folder: Path
    benchmark: Path = Path("datasets/benchmark")
    training_images: Path = Path("datasets/quickstart/train/HR")
    students: Path | None = None
    teacher: Path | None = None
    compressed: tuple[Path, ...] = ()
    idle: list[float] = field(default_factory=list)

    @cached_property
    def peaks(self) -> Peaks:
        """What this machine reaches; measured when first asked for."""
        return measure_peaks(self.threads, quick=self.quick)

    @property
    def reference_name(self) -> str:
        """Whom we are compared with."""
        return REFERENCE if self.reference is not None else FALLBACK

    def ours(self, part: str, **settings: Any) -> Worker:
        """A process of ours with a part prepared."""
        return Worker(ours_command(), self.threads, part, settings)

    @contextmanager
    def against_reference(
        self,
        part: str,
        ours: Mapping[str, Any],
        reference: Mapping[str, Any],
        fallback: Mapping[str, Any],
        fallback_part: str | None = None,
    ) -> Iterator[dict[str, Worker]]:
        """Both sides' processes, 'reference' first.

        Args:
            part: name of the part on both sides.
            ours: its settings on our side.
            reference: its settings on the reference's.
            fallback: settings of our own plain part, which stands in where there is no reference.
            fallback_part: its name where it is another.
        """
        with self.reference_side(part, reference, fallback, fallback_part) as other, self.ours(part, **ours) as own:
            yield {"reference": other, "ours": own}

    def reference_side(
        self, part: str, reference: Mapping[str, Any], fallback: Mapping[str, Any], fallback_part: str | None = None
    ) -> Worker:
        """The reference's process, or our own plain one."""
        if self.reference is None:
            return self.ours(fallback_part or part, **fallback)
        return Worker(reference_command(self.reference), self.threads, part, reference)

    def note_idle(self, worker: Worker) -> None:
        """Keeps what share of a core a process takes that has nothing to do."""
        self.idle.append(worker.idle_share(0.2 if self.quick else 1.0))

    def pairs(self, name: str, count: int, size: tuple[int, int], scale: int, copies: int = 1) -> Path:
        """A folder of made-up pairs, written once."""
        folder = self.folder / name
        return folder if folder.exists() else write_pairs(folder, count, size, scale, copies=copies)

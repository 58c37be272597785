"""A run's batches, loaded one iteration ahead so that all ranks know in time when one of them has no more."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from basicsr.data.batch import Batch, Skipped
from basicsr.data.loading import NoMoreAsked
from basicsr.engine.process.distributed import RankInfo
from basicsr.files.regular_files import read_regular
from basicsr.utils.dist_util import gather_objects, on_master
from basicsr.utils.errors import CheckpointError, DataError, Preempted

SKIPPED = "skipped_images.txt"
_Item = TypeVar("_Item")


class PrefetchedBatches(Generic[_Item]):
    """Loads the next iteration's batches before it hands out the present one's.

    An error in loading is kept in `failure`, and the batches end with those that were loaded before.
    """

    def __init__(self, batches: Iterable[_Item]) -> None:
        self._source = iter(batches)
        self._coming: _Item | None = None
        self._waited = 0.0
        self.failure: Exception | None = None

    def fill(self) -> None:
        """Loads what the first iteration needs."""
        self._coming = self._take()

    def __iter__(self) -> Iterator[_Item]:
        while self._coming is not None:
            present, self._coming = self._coming, self._take()
            yield present

    def close(self) -> None:
        """Ends the loader's workers."""
        if isinstance(self._source, Generator):
            self._source.close()

    def seconds_waited(self) -> float:
        """How long the loader was waited for since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _take(self) -> _Item | None:
        asked = time.monotonic()
        try:
            return next(self._source, None)
        except NoMoreAsked:
            self.failure = Preempted("preempted while it waited for data; go on with --auto_resume")
            return None
        except Exception as error:  # of a dataset of the user's own anything; it is raised when all is saved
            self.failure = error
            return None
        finally:
            self._waited += time.monotonic() - asked


class SkippedImages:
    """Which images training does without, and whether they are too many. The same on all ranks.

    Args:
        folder: experiments/NAME, where `skipped_images.txt` lists them.
        limit: `skip_bad_images`.
        rank_info: this rank.
        known: the run's notes by sample; grows here.
    """

    def __init__(self, folder: Path, limit: int, rank_info: RankInfo, known: dict[int, list[str]]) -> None:
        self._path, self._limit, self._rank_info, self._known = folder / SKIPPED, limit, rank_info, known
        self._new: set[Skipped] = set()
        self._skipped: set[Skipped] = set()  # since this start
        self._listed: set[str] = set(on_master(self._read)) if limit else set()

    def note(self, batches: Sequence[Batch]) -> None:
        """Notes the images that an iteration's batches lack."""
        for batch in batches:
            self._new.update(batch.skipped)

    def share(self) -> list[str]:
        """Merges and writes what all ranks have noted; returns what is new. All ranks must call."""
        if not self._limit:
            return []
        new = sorted({image for images in gather_objects(sorted(self._new)) for image in images} - self._skipped)
        self._new.clear()
        self._skipped.update(new)
        for image in new:
            if image.note not in (notes := self._known.setdefault(image.sample, [])):
                notes.append(image.note)
        lines = sorted(image.note for image in new)
        on_master(lambda: self._append([line for line in lines if line not in self._listed]))
        return lines

    @property
    def too_many(self) -> DataError | None:
        """The error where more images are left out than is allowed."""
        count = len({image.sample for image in self._skipped})  # of a pair, both files may be bad
        if count <= self._limit:
            return None
        return DataError(
            f"{count} training images cannot be used, skip_bad_images allows {self._limit}; they are"
            f" listed in {self._path}"
        )

    def _read(self) -> list[str]:
        if not os.path.lexists(self._path):
            return []
        try:
            return read_regular(self._path).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read ({error.strerror}); remove it") from error

    def _append(self, lines: Sequence[str]) -> None:
        try:
            if lines:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from error

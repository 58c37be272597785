"""Training without the few images that cannot be used: what is taken in their place.

In place of sample i comes sample i + 1, or the next one that can be loaded, around the end to the beginning; seed
and patch size stay those of the position. So what comes depends on the sample's key and on which files are bad, not
on workers, ranks, or how often a run was resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import Dataset

from basicsr.data.base import load_sample, sample_name
from basicsr.data.batch import Skipped
from basicsr.data.checks.inspection import without_name
from basicsr.data.sampling import SampleKey
from basicsr.data.storage import StoredImages
from basicsr.utils.errors import DataError


def load_or_replace(
    dataset: Dataset[Any], key: SampleKey, limit: int, bad: Mapping[int, Sequence[str]], pixels: bool = False
) -> tuple[dict[str, Any], tuple[Skipped, ...]]:
    """Loads a sample, or the next one that can be loaded.

    Args:
        dataset: any map-style dataset.
        key: of the sample.
        limit: how many bad images a run may do without.
        bad: what is known to be wrong, 'path: reason' each, by the index of the sample; these are not tried.
        pixels: as for `load_sample`.

    Returns:
        The sample, and what was skipped for it.

    Raises:
        DataError: more than `limit` samples in a row cannot be loaded, or none of the dataset can.
    """
    length = len(cast(Sized, dataset))
    skipped: list[Skipped] = []
    for step in range(min(length, limit + 1)):
        index = (key.index + step) % length
        if index in bad:
            skipped += [Skipped(index, note) for note in bad[index]]
            continue
        try:
            return load_sample(dataset, replace(key, index=index), pixels), tuple(skipped)
        except DataError as error:
            skipped.append(Skipped(index, _note(dataset, index, str(error))))
    raise DataError(
        f"{sample_name(dataset, key.index)} and the {min(length, limit + 1) - 1} after it cannot be loaded, and"
        f" skip_bad_images is {limit}; the first is {skipped[0].note}"
    )


def _note(dataset: Any, index: int, message: str) -> str:
    """'path: reason', where the path is that of the image that the message is about, or else the sample's first."""
    method = getattr(dataset, "stored_images", None)
    stored = method() if callable(method) else None
    if not isinstance(stored, StoredImages):
        return f"{sample_name(dataset, index)}: {message}"
    names = [stored.name(role, index) for role in stored.files]
    for name in names:
        if (reason := without_name(message, name)) != message:
            return f"{name}: {reason}"
    return f"{names[0]}: {message}"

"""The images that a dataset's options name: of one folder, pattern or database, or of several, HR and LR in pairs.

Each image has a name of its own: its path relative to its folder, or what a pattern leaves open. Of several folders,
what tells these apart comes before it in results: `DIV2K/0001` and `Flickr2K/0001` of `datasets/DIV2K/HR` and
`datasets/Flickr2K/HR`. Checkpoints and teachers' caches call them by the number of the folder, `1/0001` and `2/0001`,
so that folders may be moved. No image is in a set twice.
"""
# ruff: noqa: D102 (ImageRoot says what the methods of other kinds do)

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, permutations, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from basicsr.data.storage import ImageRoot, OpenImage, Share, roots_of
from basicsr.files.image_folders import is_pattern
from basicsr.files.image_headers import MOST_PIXELS, ImageHeader, Source
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.text import printable

if TYPE_CHECKING:  # scripts for data need nothing of pydantic
    from basicsr.config.component_blocks import ImageFolders


@dataclass(frozen=True)
class ImageSet:
    """Images, or pairs of them, in order: `paths` has {'lq_path': ..., 'gt_path': ...}, or one of the two, of each.

    `roots` has by role the root that opens them. `shares` are those of the folders, and `chosen` images are named by a
    list, so that others in their folders are left out on purpose.
    """

    paths: list[dict[str, str]]
    roots: Mapping[str, ImageRoot]
    shares: tuple[Share, ...]
    chosen: bool


class _Entry(NamedTuple):
    path: str
    weight: float | None


def find_images(
    io_backend: Mapping[str, Any],
    folders: Mapping[str, ImageFolders],
    *,
    filename_tmpl: str = "{}",
    meta_info_file: str | Sequence[str | None] | None = None,
    weighted: bool = False,
) -> ImageSet:
    """Lists the images in `folders`, by role: 'gt' and 'lq', in pairs, or one of them.

    Lists of folders pair up entry by entry, and so do those of a `meta_info_file`. Weights are refused unless
    `weighted`. Raises DataError: a folder is missing or empty, an image has no partner, or is in the set twice;
    OptionsError: lists of other lengths, weights that contradict each other.
    """
    entries = {role: _entries(value) for role, value in folders.items()}
    lengths = {f"dataroot_{role}": len(found) for role, found in entries.items()}
    metas = [meta_info_file] if meta_info_file is None or isinstance(meta_info_file, str) else list(meta_info_file)
    if meta_info_file is not None:
        lengths["meta_info_file"] = len(metas)
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise OptionsError(f"lists pair up entry by entry, so they need equally many entries: {given}")
    count = next(iter(lengths.values()))
    weights = [_weight(entries, number, weighted) for number in range(count)]
    roots: dict[str, list[ImageRoot]] = {role: [] for role in entries}
    found: list[list[dict[str, str]]] = []
    for number, meta in zip(range(count), metas if len(metas) == count else [None] * count, strict=True):
        places = {role: one[number].path for role, one in entries.items()}
        here = roots_of(io_backend, places)
        for role, place in places.items():
            if meta is not None and here[role].takes_list and is_pattern(place):
                pattern = f"dataroot_{role} is the pattern {place}"
                raise OptionsError(f"meta_info_file {meta} names images of a folder, {pattern}; give one of the two")
        for role, root in here.items():
            roots[role].append(root)
        if len(here) == 2:
            found.append(here["gt"].pairs(places["lq"], filename_tmpl, meta))
        else:
            ((role, root),) = here.items()
            found.append([{f"{role}_path": name} for name in root.names(meta)])
    joined = {role: parts[0] if count == 1 else SeveralRoots.of(parts) for role, parts in roots.items()}
    paths = found[0]
    if count > 1:
        paths = [
            {key: joined[key.removesuffix("_path")].listed(name, number) for key, name in pair.items()}
            for number, pairs in enumerate(found)
            for pair in pairs
        ]
    for role, root in joined.items():
        if count > 1 or is_pattern(entries[role][0].path):
            _check_each_once(root, [path[f"{role}_path"] for path in paths])
    shares = tuple(Share(len(pairs), weight) for pairs, weight in zip(found, weights, strict=True))
    chosen = any(meta is not None for meta in metas) and all(root.takes_list for root in chain(*roots.values()))
    return ImageSet(paths, joined, shares, chosen)


def _entries(value: ImageFolders) -> list[_Entry]:
    listed = [value] if isinstance(value, (str, Mapping)) else list(value)
    return [_Entry(one, None) if isinstance(one, str) else _Entry(one["path"], one.get("weight")) for one in listed]


def _weight(entries: Mapping[str, Sequence[_Entry]], number: int, weighted: bool) -> float:
    """The weight of an entry, which its HR or its LR folder gives, or both alike."""
    given = {role: weight for role, found in entries.items() if (weight := found[number].weight) is not None}
    if given and not weighted:
        raise OptionsError(f"dataroot_{next(iter(given))}: weight is of training only; remove it")
    if len(set(given.values())) > 1:
        both = " and ".join(f"{weight:g} in dataroot_{role}" for role, weight in given.items())
        raise OptionsError(f"weight of entry {number + 1} is {both}; give it once")
    return next(iter(given.values()), 1.0)


def _check_each_once(root: ImageRoot, names: Sequence[str]) -> None:
    """Raises DataError where two names are of one image, through links or because folders overlap."""
    real: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for name in names:
        folder, last = root.place(name)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        other = seen.setdefault((real[folder], last), name)
        if other is not name:
            both = f"{root.label(other)} and {root.label(name)} are one image"
            raise DataError(
                f"{both if other != name else f'{root.label(name)} is listed twice'}; name each folder once, and none"
                " inside another (in training, weight: takes images more often)"
            )


@dataclass(frozen=True)
class SeveralRoots(ImageRoot):
    """Several roots as one; images are called by their names in their root, after its path unless that is in there."""

    parts: tuple[ImageRoot, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[ImageRoot]) -> SeveralRoots:
        """Joins roots, which get the labels by which they differ."""
        return cls(
            ", ".join(part.path for part in parts), tuple(parts), tuple(_labels([part.folder for part in parts]))
        )

    @cached_property
    def _by_folder(self) -> dict[str, list[int]]:
        """The numbers of the roots by what their images' names begin with."""
        found: dict[str, list[int]] = {}
        for number, part in enumerate(self.parts):
            found.setdefault(os.path.join(part.folder, ""), []).append(number)
        return found

    def _of(self, listed: str) -> tuple[int, ImageRoot, str]:
        """Number and root of an image, and its name there; where one folder is inside another, the inner one's."""
        end = len(listed)
        while end:
            end = listed.rfind(os.sep, 0, end - 1) + 1
            for number in self._by_folder.get(listed[:end], ()):
                part = self.parts[number]
                if part.may_have(listed):
                    return number, part, listed if part.names_are_paths else listed[end:]
        raise DataError(f"{printable(listed)} is in none of {self.path}")

    def listed(self, name: str, number: int = 0) -> str:
        part = self.parts[number]
        return name if part.names_are_paths else os.path.join(part.folder, name)

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(part.folders for part in self.parts))

    @property
    def given(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(part.given for part in self.parts))

    @property
    def variant(self) -> str:
        return "".join(part.variant for part in self.parts)

    def label(self, name: str) -> str:
        _, part, own = self._of(name)
        return part.label(own)

    def file(self, name: str) -> str:
        _, part, own = self._of(name)
        return part.file(own)

    def place(self, name: str) -> tuple[str, str]:
        _, part, own = self._of(name)
        return part.place(own)

    def relative(self, name: str) -> str:
        number, part, own = self._of(name)
        return os.path.join(self.labels[number], part.relative(own))

    def key(self, name: str) -> str:
        number, part, own = self._of(name)
        return f"{number + 1}/{part.key(own)}"

    def title(self, name: str) -> str:
        number, part, own = self._of(name)
        return f"{self.labels[number]}/{part.key(own)}"

    def open(self, name: str) -> OpenImage:
        _, part, own = self._of(name)
        return part.open(own)

    def opened(self, name: str) -> AbstractContextManager[Source]:
        _, part, own = self._of(name)
        return part.opened(own)

    def content(self, name: str) -> bytes:
        _, part, own = self._of(name)
        return part.content(own)

    # All parts are of one kind.

    @property
    def channels(self) -> int:
        return self.parts[0].channels

    @property
    def kind(self) -> str:
        return self.parts[0].kind

    def form(self, name: str) -> tuple[str, np.dtype] | None:
        _, part, own = self._of(name)
        return part.form(own)

    def header(self, source: Source) -> ImageHeader:
        return self.parts[0].header(source)

    def fault(self, header: ImageHeader, most_pixels: int = MOST_PIXELS) -> str | None:
        return self.parts[0].fault(header, most_pixels)

    def decoded(self, content: bytes, label: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
        return self.parts[0].decoded(content, label, most_pixels)

    def shapes(self) -> Mapping[str, tuple[int, int, int]]:
        return {
            self.listed(name, number): shape
            for number, part in enumerate(self.parts)
            for name, shape in part.shapes().items()
        }

    def warnings(self, count: int) -> Iterator[str]:
        return chain.from_iterable(part.warnings(count) for part in self.parts)


def _labels(folders: Sequence[str]) -> list[str]:
    """What tells paths apart, without what all begin or end with; else their numbers from 1."""
    paths = [os.path.abspath(folder).removesuffix(".lmdb").split(os.sep)[1:] for folder in folders]
    start = _common(paths)
    end = _common([path[start:][::-1] for path in paths])
    for found in ([path[start : len(path) - end] for path in paths], [path[start:] for path in paths]):
        texts = ["/".join([*path, ""]) for path in found]
        pairs = permutations(texts, 2)
        if all(found) and not any(one.startswith(other) for one, other in pairs):
            return [text.rstrip("/") for text in texts]
    return [str(number + 1) for number in range(len(paths))]


def _common(paths: Sequence[Sequence[str]]) -> int:
    """How many of their first parts all paths share."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))

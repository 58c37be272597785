"""The images in a folder and in the folders below it, and those that a pattern matches.

A folder is read with all folders below it, in the order of the names, each one once. Left out are

* hidden folders, those of systems and archives (`_OF_SYSTEMS`), teachers' caches, and LR images that
  scripts/data/generate_lr.py made: a folder of photographs may hold them, and they are no part of it;
* links to a folder that is read anyway, or that contains the one that is read: they would end in a circle.

The folder that is named is read in any case.

A pattern has `*`, `?` or `[...]` in its path, as in shells, and `**` for any number of folders: `photos/**/*.jpg`,
`datasets/*/HR`. It matches images, or folders, which are read as above, but not both. In endings upper and lower case
do not count. An image's name is what the pattern leaves open: `DIV2K/0001.png` for `datasets/DIV2K/HR/0001.png`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from basicsr.utils.errors import DataError
from basicsr.utils.misc import entries_of, is_folder
from basicsr.utils.text import printable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

_OF_SYSTEMS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_CACHE, _LR_NOTE = "cache.json", ".generate_lr.json"
_HEAD = 1 << 16
_WILD = re.compile(r"[*?\[]")
_WILDCARD = re.compile(r"\[(?P<no>!)?(?P<set>\]?[^\]]*)\]|(?s:.)")
_SEP = re.escape(os.sep)
_ANY = "**"

HIDDEN, MADE, TWICE = "hidden, or the system's", "made by a script here", "links to what is read elsewhere"


@dataclass
class ImageTree:
    """What a folder and those below it hold, as paths relative to it, in order."""

    images: list[str] = field(default_factory=list)
    """By their endings, whether or not they can be read."""
    others: list[str] = field(default_factory=list)
    """Other files, and hidden ones."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Folders that are not read, each with HIDDEN, MADE or TWICE."""
    folders: list[str] = field(default_factory=list)
    """Those that are, `''` for the first."""


def read_tree(root: str, named: bool = True, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> ImageTree:
    """Lists the images of a folder and of those below; raises DataError where one of them cannot be read.

    Unless it is `named`, the folder itself may be left out, too. Images end in one of `suffixes`.
    """
    return _Walk(root, named, suffixes).tree()


class _Walk:
    """Reads folders first and links to folders then, so that what a link leads to has its own name where it has one."""

    def __init__(self, root: str, named: bool, suffixes: tuple[str, ...]) -> None:
        self._root, self._named, self._suffixes = root, named, suffixes
        self._entries: dict[str, list[tuple[str, bool]]] = {}  # of a folder: names, and whether it is a folder
        self._left_out: dict[str, str] = {}
        self._seen: set[str] = set()
        self._links: list[str] = []
        real = os.path.realpath(root)
        self._read("", real)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                target = os.path.realpath(os.path.join(root, link))
                if target in self._seen or os.path.join(real, "").startswith(os.path.join(target, "")):
                    self._left_out[link] = TWICE
                else:
                    self._read(link, target)

    def _read(self, start: str, real: str) -> None:
        """Reads a folder and all below it but for links; `real` is its path without links."""
        waiting = [(start, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self._seen:
                self._left_out[folder] = TWICE
                continue
            entries = entries_of(os.path.join(self._root, folder) if folder else self._root)
            if (folder or not self._named) and _is_made(entries):
                self._left_out[folder] = MADE
                continue
            self._seen.add(real)
            kept = self._entries[folder] = []
            for entry in entries:
                name = entry.name
                if name.lower().endswith(self._suffixes) or not is_folder(entry):
                    kept.append((name, False))
                    continue
                kept.append((name, True))
                below = f"{folder}{os.sep}{name}" if folder else name
                if name.startswith(".") or name in _OF_SYSTEMS:
                    self._left_out[below] = HIDDEN
                elif entry.is_symlink():
                    self._links.append(below)
                else:
                    waiting.append((below, f"{real.rstrip(os.sep)}{os.sep}{name}"))

    def tree(self) -> ImageTree:
        """What was read, in order."""
        tree = ImageTree()
        waiting = [("", True)]
        while waiting:
            path, may_be_read = waiting.pop()
            if not may_be_read:
                name = path.rpartition(os.sep)[2]
                is_image = not name.startswith(".") and name.lower().endswith(self._suffixes)
                (tree.images if is_image else tree.others).append(path)
            elif path in self._left_out:
                tree.left_out.append((path, self._left_out[path]))
            else:
                tree.folders.append(path)
                before = f"{path}{os.sep}" if path else ""
                waiting += [(f"{before}{name}", is_one) for name, is_one in reversed(self._entries[path])]
        return tree


def _is_made(entries: Sequence[os.DirEntry[str]]) -> bool:
    """Whether a folder is a teacher's cache, or has the LR images of scripts/data/generate_lr.py."""
    for entry in entries:
        if entry.name in (_CACHE, _LR_NOTE):
            with suppress(OSError, ValueError), open(entry.path, "rb") as file:
                head = file.read(_HEAD)
                if (b'"teacher"' in head) if entry.name == _CACHE else ("scale" in json.loads(head)):
                    return True
    return False


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards; one that exists as it is written has none."""
    return _WILD.search(path) is not None and not os.path.lexists(path)


class Pattern:
    """A path with wildcards; see above."""

    def __init__(self, text: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> None:
        self.text, self._suffixes = text, suffixes
        parts = [part for part in text.split(os.sep) if part not in ("", ".")]
        first = next(number for number, part in enumerate(parts) if _WILD.search(part))
        self.base = os.path.join(os.sep if os.path.isabs(text) else "", *parts[:first])
        self._parts: list[str] = []
        for part in parts[first:]:
            if _ANY in part and part != _ANY:
                raise DataError(f"{text}: ** stands for whole folders, as in photos/**/*.jpg, got {part}")
            if part != _ANY or self._parts[-1:] != [_ANY]:
                self._parts.append(part)
        if self._parts[-2:] == [_ANY, "*"]:  # the same images
            del self._parts[-1]
        self._folders_only = text.endswith(os.sep)
        *above, last = self._parts
        base = os.path.join(re.escape(self.base), "") if self.base else ""
        try:
            self._name = re.compile("".join([base, *map(_open_part, above), _open_end(last)]))
        except re.error as error:
            raise DataError(f"{text} is no pattern: {error}") from error

    def images(self) -> list[tuple[str, str]]:
        """Name and path of each image that it matches, in order; raises DataError: none, or both files and folders."""
        files, folders, others = self._matches()
        named = not _WILD.search(self._parts[-1])
        trees = ((folder, read_tree(folder or ".", named, self._suffixes)) for folder in folders)
        below = [os.path.join(folder, name) for folder, tree in trees for name in tree.images]
        more = [path for path in below if path not in files]
        if files and more:
            raise DataError(
                f"{self.text} matches both images ({printable(next(iter(files)))}) and folders with images"
                f" ({printable(more[0])}); write {self.text.rstrip(os.sep)}{os.sep} for the folders, or an ending such"
                f" as .jpg for the images"
            )
        found = sorted(files or dict.fromkeys(more), key=lambda path: path.split(os.sep))
        if not found:
            raise DataError(self._nothing(folders, others))
        by_name: dict[str, str] = {}
        for path in found:
            if (other := by_name.setdefault(self.name(path), path)) is not path:
                raise DataError(
                    f"{self.text} would call both {printable(f'{other} and {path}')} {printable(self.name(path))};"
                    " write it with fewer **"
                )
        return list(by_name.items())

    def matches(self, path: str) -> bool:
        """Whether it matches an image's path, or a folder above it."""
        return self._name.fullmatch(path) is not None

    def name(self, path: str) -> str:
        """What the pattern leaves open of a path that it matches."""
        match = self._name.fullmatch(path)
        return "".join(filter(None, match.groups())) if match else path

    def _matches(self) -> tuple[dict[str, None], list[str], int]:
        """The images and folders that it matches, and the number of other files."""
        if self.base and not os.path.isdir(self.base):
            raise DataError(f"{self.text} matches nothing, as there is no folder {self.base}; check the path")
        files: dict[str, None] = {}
        folders: dict[str, None] = {}
        others = 0
        for path, is_one in _expanded(self.base, self._parts):
            if is_one:
                folders[path] = None
            elif not self._folders_only and path.lower().endswith(self._suffixes):
                files[path] = None
            else:
                others += 1
        return files, _outermost(folders, self.base), others

    def _nothing(self, folders: Sequence[str], others: int) -> str:
        if folders:
            return f"{self.text} matches folders without images, such as {printable(folders[0])}; check the path"
        if others:
            return f"{self.text} matches files, but no image ({', '.join(self._suffixes)}); check the ending"
        return f"{self.text} matches nothing; check the path"


def _expanded(folder: str, parts: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """What matches `parts` below a folder, '' for this one: path, and whether it is a folder; in no order."""
    part, rest = parts[0], parts[1:]
    if part == _ANY:
        for below in read_tree(folder or ".").folders:
            path = os.path.join(folder, below) if below else folder
            yield from _expanded(path, rest) if rest else [(path, True)]
    elif not _WILD.search(part):
        path = os.path.join(folder, part)
        if os.path.isdir(path):
            yield from _expanded(path, rest) if rest else [(path, True)]
        elif not rest and os.path.lexists(path):
            yield path, False
    else:
        matches = re.compile(_regex(part)).fullmatch
        for entry in entries_of(folder or "."):
            name = entry.name
            if not matches(name) or (name.startswith(".") and not part.startswith(".")):
                continue
            path = os.path.join(folder, name)
            if name.lower().endswith(IMAGE_SUFFIXES) or not is_folder(entry):
                if not rest:
                    yield path, False
            elif name not in _OF_SYSTEMS:
                yield from _expanded(path, rest) if rest else [(path, True)]


def _outermost(folders: Iterable[str], base: str) -> list[str]:
    """Folders in order, but for those below another, and links to another or to one that contains `base`."""
    links = {folder: os.path.realpath(folder) for folder in folders if os.path.islink(folder)}
    real = {os.path.realpath(folder) for folder in folders if folder not in links}
    above = os.path.join(os.path.realpath(base or "."), "")
    found: list[str] = []
    for folder in sorted(folders, key=lambda path: path.split(os.sep)):
        if found and (not found[-1] or folder.startswith(os.path.join(found[-1], ""))):
            continue
        if folder in links and (links[folder] in real or above.startswith(os.path.join(links[folder], ""))):
            continue
        found.append(folder)
    return found


def _regex(part: str) -> str:
    """A part of a pattern as a regular expression."""
    stem, dot, ending = part.rpartition(".")
    if dot and not _WILD.search(ending):
        return f"{_WILDCARD.sub(_translated, stem)}\\.(?i:{re.escape(ending)})"
    return _WILDCARD.sub(_translated, part)


def _translated(match: re.Match[str]) -> str:
    text, not_these, these = match[0], match["no"], match["set"]
    if these is not None:
        escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", these)
        return f"(?!{re.escape(os.sep)})[{'^' if not_these else ''}{escaped}]"
    return {"*": f"[^{_SEP}]*", "?": f"[^{_SEP}]"}.get(text) or re.escape(text)


def _open_part(part: str) -> str:
    """A part above the last one as a regular expression, a group where it leaves something open."""
    if part == _ANY:
        return f"((?:[^{_SEP}]+{_SEP})*)"
    return f"({_regex(part)}{_SEP})" if _WILD.search(part) else re.escape(part) + _SEP


def _open_end(part: str) -> str:
    """The last part likewise, with what lies below it."""
    if part == _ANY:
        return "(.*)"
    return (
        f"({_regex(part)}(?:{_SEP}.+)?)"
        if _WILD.search(part)
        else f"(?:{re.escape(part)}{_SEP}(.+)|({re.escape(part)}))"
    )

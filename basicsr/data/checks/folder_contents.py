"""What else lies in a folder of images, and how many images the benchmark of its name has.

None of this is an error, as a file may lie there on purpose; all of it is logged, so that no image is missed unnoticed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from basicsr.files.images import IMAGE_SUFFIXES
from basicsr.utils.errors import DataError
from basicsr.utils.misc import is_folder, scandir
from basicsr.utils.text import printable

_NAMED = 3
_COUNTED_AT_MOST = 10_000
_LIKE_IMAGE = re.compile(
    r"\.(jfif|jpe|jp2|j2k|jxl|avif|hei[cf]|gif|apng|p[gbnf]m|exr|hdr|dng|cr2|nef|arw|raw|tga|pcx|dds|svg|psd|fits|dcm"
    r"|npy)\Z"
)
_MAC_NOTES = "._"

# Names of the sets that papers use, by their number of images.
_SETS = {
    5: "Set5",
    14: "Set14",
    18: "McMaster",
    24: "Kodak24",
    68: "BSD68 CBSD68",
    91: "T91",
    100: "BSD100 B100 BSDS100 Urban100 General100 Rain100L Rain100H DIV2K_valid DIV2K_val DIV2K_valid_HR DIV2K100",
    109: "Manga109",
    800: "DIV2K_train DIV2K_train_HR DIV2K800",
    1200: "Test1200",
    2650: "Flickr2K Flickr2K_HR",
    2800: "Test2800",
    3450: "DF2K DF2K_HR",
}
_KNOWN_SETS = {name.lower().replace("_", ""): (name, count) for count, names in _SETS.items() for name in names.split()}
# Folders whose parent, or a folder above that, has the set's name.
_PARTS = re.compile(
    r"(hr|gt|gt_?mod\d*|original|lr|lr_?bicubic|lr_?bic(ubic)?_?x?\d*|bicubic|x\d+|image_srf_\d+|input|target|lq|hq)"
)


def some(names: Sequence[str], what: str = "image") -> str:
    """`2 images (a.png, b.png)`; of many, the first few."""
    return f"{len(names):,d} {what}{'s' if len(names) > 1 else ''} ({first_few(names)})"


def first_few(names: Sequence[str]) -> str:
    """`a.png, b.png, c.png, ...`."""
    return printable(", ".join(names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def folder_warnings(folder: str, *, recursive: bool = False) -> Iterator[str]:
    """Warns about files in a folder that are not used; with `recursive`, in the folders below too."""
    entries = _entries_of(folder)
    folders = [entry for entry in entries if not _is_image(entry.name) and is_folder(entry)]
    below = {entry.name: count for entry in folders if (count := count_images(entry.path)) != 0}
    if recursive:
        for entry in folders:
            if entry.name in below and not entry.is_symlink():
                yield from (f"{entry.name}: {sentence}" for sentence in folder_warnings(entry.path, recursive=True))
    elif below:
        counts = [f"{name}: {'cannot be read' if count is None else f'{count:,d}'}" for name, count in below.items()]
        yield (
            f"{some(counts, 'folder')} in it, with images, not read; name one of them instead, or bring the images of"
            f" all into one by: python scripts/data/generate_lr.py --recursive --input {shlex.quote(folder)} --output"
            " NEW_LR --hr-output NEW_HR --scales SCALE"
        )
    names = [entry.name for entry in entries if entry not in folders]
    if others := [name for name in names if looks_like_image(name)]:
        yield (
            f"{some(others, 'file')} in it not read, because of the ending; convert to PNG, or rename what is one of"
            f" {', '.join(IMAGE_SUFFIXES)}"
        )
    there = set(names)
    hidden = [name for name in names if name.startswith(".") and _is_image(name)]
    if hidden := [name for name in hidden if name.removeprefix(_MAC_NOTES) not in there - {name}]:
        yield f"{some(hidden, 'hidden file')} in it not read; rename what belongs to the images"
    if alike := list(_alike(name for name in names if _is_image(name) and not name.startswith("."))):
        yield (
            f"names that differ in upper and lower case or ending only ({first_few(alike)}); remove what is there twice"
        )


def _alike(names: Iterable[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(os.path.splitext(name)[0].casefold(), name)
        if other is not name:
            yield f"{other} and {name}"


def count_mismatch(name: str, number: int) -> str | None:
    """A warning where a set of this name has another number of images than the known one; else None."""
    known = _KNOWN_SETS.get(re.sub(r"[^a-z0-9]|[ _.-]?x[2-8]\Z", "", name.lower()))
    if known is None or known[1] == number:
        return None
    return f"{number:,d} image{'s' if number != 1 else ''} here, {known[0]} has {known[1]:,d}: figures are not its own"


def set_name(root: str) -> str:
    """The name of the set whose images a folder holds: the last part of the path that is not HR, LR_bicubic, X2 ..."""
    parts = os.path.abspath(root).removesuffix(".lmdb").split(os.sep)
    return next((part for part in reversed(parts) if not _PARTS.fullmatch(part.lower())), "")


def folders_like_images(folder: str) -> list[str]:
    """Names of folders in a folder that have an image's ending; raises DataError where it cannot be read."""
    entries = (entry for entry in _entries_of(folder) if _is_image(entry.name) and not entry.name.startswith("."))
    return [entry.name for entry in entries if is_folder(entry)]


def looks_like_image(name: str) -> bool:
    """Whether a file that is not read may be an image: by its ending, or because it has none."""
    return not name.startswith(".") and ("." not in name or _LIKE_IMAGE.search(name.lower()) is not None)


def count_images(folder: str) -> int | None:
    """Images in a folder and those below it; None where one cannot be read."""
    try:
        return sum(1 for _, _ in zip(range(_COUNTED_AT_MOST), scandir(folder, IMAGE_SUFFIXES, True), strict=False))
    except DataError:
        return None


def _entries_of(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}; check the path") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)

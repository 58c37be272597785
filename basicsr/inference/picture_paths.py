"""Which pictures a command line names, and where their results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr.data.checks.folder_contents import count_images, looks_like_image, some
from basicsr.inference.picture_writing import FORMATS
from basicsr.inference.pictures import PICTURE_SUFFIXES, PictureFile
from basicsr.utils.errors import DataError
from basicsr.utils.misc import scandir
from basicsr.utils.text import printable


@dataclass(frozen=True)
class Source:
    """A picture to be read."""

    path: str
    below: str  # path below the folder or the fixed part of the pattern given; a file's name
    named: bool  # whether the command line named the file itself


@dataclass(frozen=True)
class Job:
    """A picture and the file that its result is written to."""

    source: str
    target: Path


def find_sources(inputs: Sequence[str], *, recursive: bool = False) -> list[Source]:
    """The pictures of files, folders and patterns (`**` stands for any folders), each once; DataError if there is none.

    Folders and patterns are searched for `PICTURE_SUFFIXES`; what exists is no pattern, whatever its name.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _sources_of(given, recursive):
            sources.setdefault(_place(source.path), source)
    return list(sources.values())


def not_taken(given: str, output: Path, *, recursive: bool) -> Iterator[str]:
    """Warnings of pictures in a given folder that `find_sources` skips, except results."""
    if not os.path.isdir(given):
        return
    names = sorted(os.listdir(given))
    folders = [name for name in names if os.path.isdir(os.path.join(given, name))]
    inputs = [name for name in folders if _place(os.path.join(given, name)) != _place(output)]
    below = {name: count for name in inputs if (count := count_images(os.path.join(given, name))) != 0}
    if below and not recursive:
        counts = [f"{name}: {'cannot be read' if count is None else f'{count:,d}'}" for name, count in below.items()]
        yield f"{some(counts, 'folder')} in it, with pictures, not read; --recursive takes them"
    files = (name for name in names if name not in folders and not name.lower().endswith(PICTURE_SUFFIXES))
    if others := [name for name in files if looks_like_image(name)]:
        yield f"{some(others, 'file')} in it not read, because of the ending; convert to PNG"


def plan(sources: Sequence[Source], output: Path, *, suffix: str, ending: str, scale: int) -> tuple[list[Job], int]:
    """The jobs, each result going to NAME + `suffix` + `ending` below `output`, and how many pictures were skipped.

    Skipped are results of an earlier run, recognised by name and size, unless the command line names them. Raises
    DataError if a result would overwrite another or a picture to be read.
    """
    targets = {
        source.path: output / os.path.dirname(source.below) / (Path(source.below).stem + suffix + ending)
        for source in sources
    }
    places = {path: (_place(path), _place(target)) for path, target in targets.items()}
    origins = {end.removesuffix(ending) + f".{kind}": path for path, (_, end) in places.items() for kind in FORMATS}
    kept = []
    for source in sources:
        origin = None if source.named else origins.get(places[source.path][0], source.path)
        if origin in (None, source.path) or not _is_enlarged(origin, source.path, scale):
            kept.append(source)
    read = {places[source.path][0]: source.path for source in kept}
    written: dict[str, str] = {}
    for source in kept:
        place = places[source.path][1]
        if place in read:
            raise DataError(
                f"the result of {printable(source.path)} would overwrite {printable(read[place])}, which is to be read;"
                " choose another --output folder or --suffix"
            )
        if place in written:
            raise DataError(
                printable(f"{written[place]} and {source.path} would both become {targets[source.path]};")
                + " run them one by one, each with another --output folder or --suffix"
            )
        written[place] = source.path
    return [Job(source.path, targets[source.path]) for source in kept], len(sources) - len(kept)


def _is_enlarged(small: str, large: str, scale: int) -> bool:
    """Whether one picture is `scale` times as large as another, perhaps turned; False if either is damaged."""
    try:
        first, second = PictureFile(small), PictureFile(large)
    except DataError:
        return False
    return sorted((first.height * scale, first.width * scale)) == sorted((second.height, second.width))


def _sources_of(given: str, recursive: bool) -> Iterator[Source]:
    if os.path.isdir(given):
        names = list(_names_below(given, recursive))
        if not names:
            more = "" if recursive else "; --recursive looks into the folders below"
            raise DataError(f"folder {printable(given)} holds no picture ({', '.join(PICTURE_SUFFIXES)}){more}")
        yield from (Source(os.path.join(given, name), name, named=False) for name in names)
    elif os.path.lexists(given):
        yield Source(given, os.path.basename(given), named=True)
    elif glob.has_magic(given):
        yield from _matches(given)
    else:
        raise DataError(
            f"{printable(given)} does not exist; give files, folders, or patterns in quotes such as 'photos/*.jpg'"
        )


def _names_below(folder: str, recursive: bool) -> Iterator[str]:
    """Names like pictures in a folder, except folders of such names."""
    for name in scandir(folder, suffix=PICTURE_SUFFIXES, recursive=recursive):
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            yield name
        elif recursive and not os.path.islink(path):
            yield from (os.path.join(name, below) for below in _names_below(path, recursive))


def _matches(pattern: str) -> Iterator[Source]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    pictures = [path for path in found if path.lower().endswith(PICTURE_SUFFIXES)]
    if not pictures:
        what = f"{len(found)} files, none of them a picture ({', '.join(PICTURE_SUFFIXES)})" if found else "no file"
        raise DataError(f"pattern '{printable(pattern)}' matches {what}")
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    yield from (Source(path, os.path.relpath(path, fixed or os.curdir), named=False) for path in pictures)


def _place(path: str | os.PathLike[str]) -> str:
    """The path with links in its folders followed, but not a link of its own name."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)

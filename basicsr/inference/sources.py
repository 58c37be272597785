"""Which files of a command line are upscaled, and where the results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr.data.bands_storage import BandFolder
from basicsr.data.data_util import count_images, looks_like_image, some
from basicsr.files.image_headers import HeaderError
from basicsr.inference.pictures import FORMATS, PICTURE_SUFFIXES, PictureFile
from basicsr.utils.errors import DataError
from basicsr.utils.misc import scandir
from basicsr.utils.text import first_line, printable

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"),
    *(".3gp", ".mxf", ".vob", ".y4m"),
)
SUFFIXES = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
VIDEO_KINDS = ("mp4", "mov", "mkv")


def is_video(path: str) -> bool:
    """Whether a file is taken for a video, by its name."""
    return path.lower().endswith(VIDEO_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A picture or a video to be read."""

    path: str
    below: str  # path below the folder or the fixed part of the pattern given; a file's name
    named: bool  # whether the command line named the file itself


def find_sources(
    inputs: Sequence[str], *, recursive: bool = False, suffixes: tuple[str, ...] = SUFFIXES
) -> list[Source]:
    """The pictures and videos of files, folders and patterns (`**`: any folders), each once; DataError if none.

    Folders and patterns are searched for `suffixes`; what exists is no pattern, whatever its name.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _sources_of(given, recursive, suffixes):
            sources.setdefault(_place(source.path), source)
    return list(sources.values())


def _sources_of(given: str, recursive: bool, suffixes: tuple[str, ...]) -> list[Source]:
    endings = ", ".join(suffixes)
    if os.path.isdir(given):
        names = list(scandir(given, suffix=suffixes, recursive=recursive))
        if not names:
            more = "" if recursive else "; --recursive looks into the folders below"
            raise DataError(f"folder {printable(given)} holds no picture and no video ({endings}){more}")
        return [Source(os.path.join(given, name), name, named=False) for name in names]
    if os.path.lexists(given):
        return [Source(given, os.path.basename(given), named=True)]
    if not glob.has_magic(given):
        raise DataError(
            f"{printable(given)} does not exist; give files, folders, or patterns in quotes such as 'photos/*.jpg'"
        )
    found = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
    pictures = [path for path in found if path.lower().endswith(suffixes)]
    if not pictures:
        what = f"{len(found)} files, none of them a picture or a video ({endings})" if found else "no file"
        raise DataError(f"pattern '{printable(given)}' matches {what}")
    fixed = given
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return [Source(path, os.path.relpath(path, fixed or os.curdir), named=False) for path in pictures]


def not_taken(given: str, output: Path, *, recursive: bool, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
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
    files = (name for name in names if name not in folders and not name.lower().endswith(suffixes))
    if others := [name for name in files if looks_like_image(name)]:
        yield f"{some(others, 'file')} in it not read, because of the ending; convert to PNG"


def plan(
    sources: Sequence[Source],
    output: Path,
    *,
    suffix: str,
    ending: Callable[[str], str],
    scale: int,
    bands: int | None = None,
) -> tuple[dict[str, Path], int]:
    """Each file's result, NAME + `suffix` + `ending` of its path below `output`, and how many were skipped.

    Skipped are results of an earlier run, recognised by name and size, unless the command line names them. `bands` is
    how many images have that are no pictures. Raises DataError if a result would overwrite another or a picture to be
    read.
    """
    targets: dict[str, Path] = {}
    ends: dict[str, str] = {}
    origins: dict[str, str] = {}
    for source in sources:
        stem = output / os.path.dirname(source.below) / (Path(source.below).stem + suffix)
        targets[source.path] = stem.with_name(stem.name + ending(source.path))
        end = _place(stem)
        ends[source.path] = end + ending(source.path)
        kinds = VIDEO_KINDS if is_video(source.path) else FORMATS
        origins |= {f"{end}.{kind}": source.path for kind in kinds} | {ends[source.path]: source.path}
    read = {}
    for source in sources:
        place = _place(source.path)
        origin = None if source.named else origins.get(place, source.path)
        if origin in (None, source.path) or not _is_enlarged(origin, source.path, scale, bands):
            read[place] = source.path
    written: dict[str, str] = {}
    for path in read.values():
        if ends[path] in read:
            raise DataError(
                f"the result of {printable(path)} would overwrite {printable(read[ends[path]])}, which is to be read;"
                " choose another --output folder or --suffix"
            )
        if ends[path] in written:
            raise DataError(
                printable(f"{written[ends[path]]} and {path} would both become {targets[path]};")
                + " run them one by one, each with another --output folder or --suffix"
            )
        written[ends[path]] = path
    return {path: targets[path] for path in read.values()}, len(sources) - len(read)


def _is_enlarged(small: str, large: str, scale: int, bands: int | None) -> bool:
    """Whether a file's image is `scale` times as large as another's, perhaps turned; False if either is damaged."""
    try:
        first, second = _sides(small, bands), _sides(large, bands)
    except DataError:
        return False
    enlarged = [side * scale for side in first]
    if bands is None and is_video(large):  # which may be padded
        return [-(-side // 2) for side in enlarged] == [-(-side // 2) for side in second]
    return sorted(enlarged) == sorted(second)


def _sides(path: str, bands: int | None) -> tuple[int, int]:
    """Height and width, before the file is decoded; raises DataError."""
    if bands is not None:
        root = BandFolder(bands=bands)
        try:
            with root.opened(path) as source:
                return root.header(source).size
        except (HeaderError, OSError) as error:
            raise DataError(f"cannot read image {printable(path)}: {first_line(error)}") from error
    if not is_video(path):
        picture = PictureFile(path)
        return picture.height, picture.width
    from basicsr.inference.video_files import VideoFile

    video = VideoFile(path)
    return video.height, video.width


def _place(path: str | os.PathLike[str]) -> str:
    """The path with links in its folders followed, but not a link of its own name."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)

"""Packs images into shards (tar files in WebDataset's layout) with an index, for `io_backend: {type: webdataset}`.

    python scripts/data/create_shards.py --hr datasets/DIV2K/DIV2K_train_HR --output shards/DIV2K
    python scripts/data/create_shards.py --hr HR --lr LR/X2 --filename-tmpl '{}x2' --output shards/pairs

writes 000000.tar, 000001.tar and so on, of files as they are (0001.hr.png, 0001.lr.png), and index.json. Names of
images in folders below begin with these (family/0001.hr.png), of several folders with their numbers (1/0001.hr.png). A
stopped run goes on with the shard that it was at.

    python scripts/data/create_shards.py --index FOLDER
    python scripts/data/create_shards.py --check FOLDER

make the index of shards that lie there already, such as those of others, and compare shards with their index.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import dataset_tools
from tqdm import tqdm

from basicsr.data.checks.inspection import examine
from basicsr.data.image_sets import ImageSet, find_images
from basicsr.data.storage import stamp_of
from basicsr.files.atomic_files import sha256_of, write_atomically
from basicsr.files.shards import INDEX, Member, Place, index_bytes, read_index, scan
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.misc import sizeof_fmt
from basicsr.utils.text import printable

_KINDS = {"gt": "hr", "lq": "lr"}
_JOURNAL = ".create_shards.json"  # of the shards that are done
_RECORD = tarfile.BLOCKSIZE  # bytes before each file, and what sizes are rounded up to


@dataclass(frozen=True)
class Sample:
    """The files of a sample, by their names in the shard."""

    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Bytes that it takes in a shard."""
        sizes = (path.stat().st_size for path in self.files.values())
        return sum(_RECORD + -(-size // _RECORD) * _RECORD for size in sizes)

    def record(self) -> list[Any]:
        """What tells it from others: names, sizes and times of change."""
        return [[name, *(stamp_of(path) or ())] for name, path in self.files.items()]


def find_samples(
    hr: Sequence[str] | None, lr: Sequence[str] | None, filename_tmpl: str, meta_info: Sequence[str] | None = None
) -> tuple[list[Sample], ImageSet]:
    """The samples of folders in order: pairs, or one image each; DataError where images have no partner."""
    given = {"gt": hr, "lq": lr}
    folders = {role: list(found) for role, found in given.items() if found is not None}
    images = find_images({"type": "disk"}, folders, filename_tmpl=filename_tmpl, meta_info_file=meta_info)
    role, root = next(iter(images.roots.items()))
    named = [
        (root.key(paths[f"{role}_path"]), {_KINDS[one]: paths[f"{one}_path"] for one in folders})
        for paths in images.paths
    ]
    samples: dict[str, Sample] = {}
    for name, paths in named:
        folder, last = os.path.split(name)
        key = os.path.join(folder, last.replace(".", "_"))  # a key ends at its first dot
        if key in samples:
            first = next(iter(samples[key].files.values()))
            raise DataError(f"{first} and {next(iter(paths.values()))} would both be called {key}; rename one")
        samples[key] = Sample(
            {f"{key}.{kind}{os.path.splitext(path)[1].lower()}": Path(path) for kind, path in paths.items()}
        )
    return list(samples.values()), images


def divide(samples: Sequence[Sample], limit: int) -> list[list[Sample]]:
    """Samples, in order, as shards of at most `limit` bytes, unless one alone is larger."""
    shards: list[list[Sample]] = []
    size = limit
    for sample in samples:
        if not shards or size + sample.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(sample)
        size += sample.size
    return shards


def check_images(samples: Sequence[Sample], workers: int) -> None:
    """Raises DataError, a line for each of the first, where images cannot be used, by headers and ends of files."""
    paths = [path for sample in samples for path in sample.files.values()]
    faults = dataset_tools.in_processes(_fault, paths, workers, "images looked at")
    if problems := [fault for fault in faults if fault is not None]:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise DataError("\n  ".join([f"{len(problems)} of {len(paths)} images cannot be used:", *problems[:20], *more]))


def _fault(path: Path) -> str | None:
    finding = examine(str(path))
    return printable(f"{path}: {finding.fault}") if finding.fault else None


def write_shard(path: Path, samples: Sequence[Sample], bar: tqdm) -> dict[str, Any]:
    """Writes a shard whole or not at all; the same files give the same bytes. Returns its entry in the index."""
    members: dict[str, list[int]] = {}

    def write(file: Any) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for sample in samples:
                for name, source in sample.files.items():
                    content = source.read_bytes()
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(content), 0o644
                    header = len(entry.tobuf(archive.format, archive.encoding, archive.errors))
                    members[name] = [archive.offset + header, len(content), zlib.crc32(content)]
                    archive.addfile(entry, io.BytesIO(content))
                bar.update()

    digest, size = write_atomically(path, write)
    return {"name": path.name, "size": size, "sha256": digest, "members": members}


def write_index(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Writes the index of shards."""
    content = json.dumps({"format": 1, "shards": list(shards)}, separators=(",", ":")).encode()
    read_index(str(folder), content)  # raises where two images have one name, or there is none
    write_atomically(folder / INDEX, lambda file: file.write(content))
    images = sum(len(shard["members"]) for shard in shards)
    size = sum(shard["size"] for shard in shards)
    print(f"{folder / INDEX}: {len(shards):,d} shards, {images:,d} files, {sizeof_fmt(size)}")


def create(options: argparse.Namespace) -> int:
    """Packs folders of images."""
    if options.hr is None and options.lr is None:
        raise OptionsError("give --hr, --lr or both, or --index or --check for shards that are there")
    if options.output is None:
        raise OptionsError("give --output, the folder for the shards")
    output: Path = options.output
    samples, images = find_samples(options.hr, options.lr, options.filename_tmpl, options.meta_info)
    dataset_tools.warn_of(images)
    shards = divide(samples, int(options.shard_size * (1 << 20)))
    entries = _done(output)
    records = [_digest([sample.record() for sample in shard]) for shard in shards]
    waiting = [number for number, record in enumerate(records) if _entry_of(entries, output, number, record) is None]
    check_images([sample for number in waiting for sample in shards[number]], options.workers)
    _check_output(output, sum(sample.size for number in waiting for sample in shards[number]))
    (output / INDEX).unlink(missing_ok=True)  # of what was there before
    with tqdm(total=sum(len(shards[number]) for number in waiting), desc="samples packed", disable=None) as bar:
        for number in waiting:
            path = output / f"{number:06d}.tar"
            entries[path.name] = {**write_shard(path, shards[number], bar), "made_of": records[number]}
            content = json.dumps(entries).encode()
            write_atomically(output / _JOURNAL, lambda file, content=content: file.write(content))  # type: ignore[misc]
    index = [entries.pop(f"{number:06d}.tar") for number in range(len(shards))]
    for name in entries:  # of an earlier, larger set
        (output / name).unlink(missing_ok=True)
    write_index(output, [{key: value for key, value in entry.items() if key != "made_of"} for entry in index])
    return 0


def _digest(records: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def _done(output: Path) -> dict[str, Any]:
    try:
        found = json.loads((output / _JOURNAL).read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _entry_of(entries: dict[str, Any], output: Path, number: int, record: str) -> dict[str, Any] | None:
    """What is known of a shard that is there, made of the same files."""
    path = output / f"{number:06d}.tar"
    entry = entries.get(path.name)
    if not isinstance(entry, dict) or entry.get("made_of") != record or not path.is_file():
        return None
    return entry if path.stat().st_size == entry.get("size") else None


def _check_output(output: Path, needed: int) -> None:
    """Makes the folder; raises DataError where it holds shards of others, or has no room."""
    foreign = sorted(path.name for path in output.glob("*.tar")) if not (output / _JOURNAL).is_file() else []
    if foreign:
        raise DataError(f"{output} holds shards that this script did not make, as {foreign[0]}; name another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {output}: {error.strerror}; name another --output") from error
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(f"{output} needs {sizeof_fmt(needed)}, {sizeof_fmt(free)} are free; make room")


def index_there(folder: Path) -> int:
    """Writes the index of the shards in a folder."""
    entries = []
    for path in tqdm(_shards_in(folder), desc="shards read", unit="", disable=None):
        members: dict[str, Place] = {}
        for name, place in scan(path):
            if name in members:
                raise DataError(f"{path} holds {printable(name)} twice; make it anew")
            members[name] = place
        entry = {"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)}
        entries.append({**entry, "members": {name: list(place[1:]) for name, place in members.items()}})
    write_index(folder, entries)
    return 0


def _shards_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give that of the shards")
    if not (found := sorted(folder.glob("*.tar"))):
        raise DataError(f"{folder} holds no shard (*.tar); compressed ones must be unpacked")
    return found


def check_there(folder: Path) -> int:
    """Compares all files of shards with their index; raises DataError with a line for each shard that differs."""
    shards = read_index(str(folder), index_bytes(str(folder), timeout=30))
    differing = []
    by_shard: dict[int, list[Member]] = {}
    for member in chain.from_iterable(images.values() for images in shards.images.values()):
        by_shard.setdefault(member.place.shard, []).append(member)
    for number in tqdm(sorted(by_shard), desc="shards checked", unit="", disable=None):
        try:
            for member in by_shard[number]:
                shards.content(member, timeout=30)
        except DataError as error:
            differing.append(str(error))
    if differing:
        raise DataError("\n".join(differing))
    print(f"{folder}: {len(by_shard):,d} shards, {sum(map(len, by_shard.values())):,d} images, all as in the index")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parse(argv)
    if options.index is not None:
        return index_there(options.index)
    if options.check is not None:
        return check_there(options.check)
    return create(options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    dataset_tools.add_input_option(add, "HR images", "--hr")
    dataset_tools.add_input_option(add, "LR images, entry by entry; without, they are made while training", "--lr")
    add("--meta-info", nargs="+", metavar="FILE", help="list of the images to take, one for each folder")
    add("--filename-tmpl", default="{}", metavar="T", help="names of LR images, such as {}x2 (default: {})")
    add("--output", type=Path, metavar="DIR", help="gets the shards and their index")
    add("--shard-size", type=float, default=512, metavar="MB", help="most of a shard (default: 512)")
    ready = parser.add_mutually_exclusive_group()
    ready.add_argument("--index", type=Path, metavar="DIR", help="make the index of the shards there")
    ready.add_argument("--check", type=Path, metavar="DIR", help="compare the shards there with their index")
    dataset_tools.add_workers_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))

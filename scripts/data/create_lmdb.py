"""Packs images into an LMDB database in BasicSR's layout, for `io_backend: {type: lmdb}`.

    python scripts/data/create_lmdb.py --input datasets/DIV2K/DIV2K_train_HR_sub \
        --output datasets/DIV2K/DIV2K_train_HR_sub.lmdb
    python scripts/data/create_lmdb.py --input datasets/DIV2K/DIV2K_train_LR_bicubic/X2 \
        --output datasets/DIV2K/DIV2K_train_LR_bicubic_X2.lmdb --strip-suffix x2

Keys are the names without ending, relative to the folder: `2019/beach`. Of several folders, their numbers come before:
`1/0001` and `2/0001`, as in the checkpoints of a run that reads the folders. HR and LR databases need the same keys,
hence `--strip-suffix`. Images are stored as PNG files of three channels. The database gets its name when it is
complete.

`--uncompressed` stores them as PPM files instead, about twice as large: 3 bytes to a pixel of 8 bits, 6 of 16. Of
these, training reads only the pixels of its patches, and decodes nothing; whole images then need no cutting into
squares. Unlike PNG they have no checksums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import dataset_tools

from basicsr.files.images import encode_png, encode_ppm
from basicsr.files.lmdb_databases import LmdbMaker, read_meta_info, stored_value
from basicsr.utils.errors import DataError, OptionsError


def encode(path: Path, compression: int | None) -> tuple[bytes, tuple[int, int, int]]:
    """An image as the bytes of a PNG file, of a PPM file where `compression` is None; height, width and channels."""
    img = dataset_tools.read_image(path)
    height, width, channels = img.shape
    return encode_ppm(img) if compression is None else encode_png(img, compression), (height, width, channels)


def check_same(database: Path, names: Collection[str], folder: str, uncompressed: bool) -> None:
    """Raises DataError unless a database holds the images of these names, in the form that is asked for."""
    keys = read_meta_info(database)
    if set(keys) != set(names):
        raise DataError(f"{database} holds other images than {folder}; remove it to create it anew")
    with stored_value(str(database), next(iter(keys))) as value:
        if (bytes(value[:2]) == b"P6") != uncompressed:
            found = "compressed" if uncompressed else "uncompressed"
            raise DataError(f"{database} holds {found} images; remove it to create it anew, or give another --output")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parse(argv)
    if options.channels is not None:
        raise OptionsError(
            f"--channels {options.channels}: a database has colours; images of several bands are read from their"
            f" folder, by io_backend: {{type: bands, channels: {options.channels}}}"
        )
    images, suffix = dataset_tools.images_of(options.input, options.meta_info), options.strip_suffix
    given = " ".join(options.input)
    paths = {
        dataset_tools.strip_suffix(name, suffix, given): path
        for name, path in dataset_tools.by_name(images, numbered=True).items()
    }
    if options.output.exists():
        check_same(options.output, paths, given, options.uncompressed)
        print(f"{options.output}: complete, nothing to do")
        return 0
    dataset_tools.warn_of(images)
    compression, ending = (None, ".ppm") if options.uncompressed else (options.compression, ".png")
    work = partial(encode, compression=compression)
    with LmdbMaker(options.output, compress_level=compression or 0, ending=ending) as maker:
        results = dataset_tools.in_processes(work, list(paths.values()), options.workers, "images packed")
        for key, (content, shape) in zip(paths, results, strict=True):
            maker.put(content, key, shape)
    print(f"{options.output}: packed {len(paths)} images")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset_tools.add_input_option(parser.add_argument, "images to pack", required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME.lmdb", help="the database")
    parser.add_argument("--strip-suffix", default="", metavar="S", help="end of the names to drop, such as x2")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--compression", type=int, choices=range(10), default=1, metavar="0..9", help="PNG level (default: 1)"
    )
    form.add_argument(
        "--uncompressed",
        action="store_true",
        help="store pixels as they are, for patches to be read alone: about twice as large, many times as fast",
    )
    parser.add_argument("--channels", type=int, help=argparse.SUPPRESS)  # as other scripts have it
    dataset_tools.add_workers_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))

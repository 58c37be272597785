"""Packs a folder of images into an LMDB database in BasicSR's layout, for `io_backend: {type: lmdb}`.

    python scripts/data/create_lmdb.py --input datasets/DIV2K/DIV2K_train_HR_sub \
        --output datasets/DIV2K/DIV2K_train_HR_sub.lmdb
    python scripts/data/create_lmdb.py --input datasets/DIV2K/DIV2K_train_LR_bicubic/X2 \
        --output datasets/DIV2K/DIV2K_train_LR_bicubic_X2.lmdb --strip-suffix x2

Keys are the names without ending; HR and LR databases need the same, hence `--strip-suffix`. Images are
stored as PNG files of three channels. The database gets its name when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dataset_tools

from basicsr.data.data_util import images_by_stem
from basicsr.utils.errors import DataError
from basicsr.utils.lmdb_util import LmdbMaker, encode_png, read_meta_info


def encode(path: Path, compression: int) -> tuple[bytes, tuple[int, int, int]]:
    """An image as a PNG file's bytes, and its height, width and channels."""
    img = dataset_tools.read_image(path)
    height, width, channels = img.shape
    return encode_png(img, compression), (height, width, channels)


def main() -> int:
    """The command."""
    options = _parse()
    names = {
        dataset_tools.strip_suffix(stem, options.strip_suffix, options.input): name
        for stem, name in images_by_stem(str(options.input)).items()
    }
    if options.output.exists():
        if set(read_meta_info(options.output)) != set(names):
            raise DataError(f"{options.output} holds other images than {options.input}; remove it to create it anew")
        print(f"{options.output}: complete, nothing to do")
        return 0
    paths = [options.input / name for name in names.values()]
    work = partial(encode, compression=options.compression)
    with LmdbMaker(options.output, compress_level=options.compression) as maker:
        results = dataset_tools.in_processes(work, paths, options.workers, "images packed")
        for key, (content, shape) in zip(names, results, strict=True):
            maker.put(content, key, shape)
    print(f"{options.output}: packed {len(paths)} images")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="images to pack")
    parser.add_argument("--output", type=Path, required=True, metavar="NAME.lmdb", help="the database")
    parser.add_argument("--strip-suffix", default="", metavar="S", help="end of the names to drop, such as x2")
    parser.add_argument(
        "--compression", type=int, choices=range(10), default=1, metavar="0..9", help="PNG level (default: 1)"
    )
    dataset_tools.add_workers_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))

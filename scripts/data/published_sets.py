"""The archives of published sets: where they come from, sizes, digests, and which of their images go where.

Sizes and SHA-256 of DIV2K's archives are those that TensorFlow Datasets records (datasets/div2k/checksums.tsv), MD5 of
EDSR's archives those that torchSR records. Where nobody publishes a digest there is none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Images of an archive that go into one folder: names that match `pattern`, called by its first group there."""

    folder: str
    pattern: str
    count: int | None = None
    scale: int = 1


@dataclass(frozen=True)
class Archive:
    """An archive as it is offered; `size` in bytes and digests in hexadecimal where they are public."""

    name: str
    url: str
    targets: tuple[Target, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    required: bool = True


@dataclass(frozen=True)
class HrFolder:
    """HR images, and where their LR images lie, `lr`/X2 and so on; made where no archive has them."""

    folder: str
    lr: str
    count: int


@dataclass(frozen=True)
class PublishedSet:
    """A set: its page, its archives, and its folders below the output folder; `train` are those to cut and to pack."""

    page: str
    archives: tuple[Archive, ...]
    folders: tuple[HrFolder, ...]
    train: tuple[str, ...] = ()
    remark: str = ""


_ETH = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
_EDSR = "https://cv.snu.ac.kr/research/EDSR"
_LSDIR = "https://huggingface.co/datasets/ofsoundof/LSDIR"
_DIV2K_LR = {
    ("train", 2): (925390592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    ("train", 3): (427847282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    ("train", 4): (246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    ("valid", 2): (117763600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"),
    ("valid", 3): (54513392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"),
    ("valid", 4): (31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
}
_DIV2K_HR = {
    "train": (800, 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
    "valid": (100, 448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
}


def _div2k_hr(part: str) -> Archive:
    count, size, sha256 = _DIV2K_HR[part]
    name = f"DIV2K_{part}_HR"
    target = Target(f"DIV2K/{name}", rf"{name}/(\d{{4}}\.png)", count)
    return Archive(f"{name}.zip", f"{_ETH}/{name}.zip", (target,), size, sha256, required=part == "train")


def _div2k_lr(part: str, scale: int) -> Archive:
    size, sha256 = _DIV2K_LR[part, scale]
    name = f"DIV2K_{part}_LR_bicubic"
    target = Target(f"DIV2K/{name}/X{scale}", rf"{name}/X{scale}/(\d{{4}}x{scale}\.png)", _DIV2K_HR[part][0], scale)
    file = f"{name}_X{scale}.zip"
    return Archive(file, f"{_ETH}/{file}", (target,), size, sha256, required=False)


def _benchmark(name: str, packed_as: str, count: int) -> tuple[Target, ...]:
    """HR and LR images of one set of EDSR's archive."""
    lr = (
        Target(
            f"benchmark/{name}/LR_bicubic/X{s}", rf"benchmark/{packed_as}/LR_bicubic/X{s}/([\w.-]+x{s}\.png)", count, s
        )
        for s in (2, 3, 4)
    )
    return Target(f"benchmark/{name}/HR", rf"benchmark/{packed_as}/HR/([\w.-]+\.png)", count), *lr


_BENCHMARKS = {"Set5": ("Set5", 5), "Set14": ("Set14", 14), "BSD100": ("B100", 100), "Urban100": ("Urban100", 100)}

DIV2K = PublishedSet(
    page=f"{_ETH}/",
    archives=(
        _div2k_hr("train"),
        _div2k_hr("valid"),
        *(_div2k_lr(part, scale) for part in ("train", "valid") for scale in (2, 3, 4)),
    ),
    folders=(
        HrFolder("DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_LR_bicubic", 800),
        HrFolder("DIV2K/DIV2K_valid_HR", "DIV2K/DIV2K_valid_LR_bicubic", 100),
    ),
    train=("DIV2K/DIV2K_train_HR",),
)

FLICKR2K = PublishedSet(
    page="https://github.com/LimBee/NTIRE2017",
    archives=(
        Archive(
            "Flickr2K.tar",
            f"{_EDSR}/Flickr2K.tar",
            (
                Target("Flickr2K/Flickr2K_HR", r"Flickr2K/Flickr2K_HR/(\d{6}\.png)", 2650),
                *(
                    Target(
                        f"Flickr2K/Flickr2K_LR_bicubic/X{scale}",
                        rf"Flickr2K/Flickr2K_LR_bicubic/X{scale}/(\d{{6}}x{scale}\.png)",
                        2650,
                        scale,
                    )
                    for scale in (2, 3, 4)
                ),
            ),
            md5="5d3f39443d5e9489bff8963f8f26cb03",
        ),
    ),
    folders=(HrFolder("Flickr2K/Flickr2K_HR", "Flickr2K/Flickr2K_LR_bicubic", 2650),),
    train=("Flickr2K/Flickr2K_HR",),
)

LSDIR = PublishedSet(
    page="https://ofsoundof.github.io/lsdir-data/",
    archives=(
        *(
            Archive(
                f"shard-{number:02d}.tar.gz",
                f"{_LSDIR}/resolve/main/shard-{number:02d}.tar.gz",
                (Target("LSDIR/LSDIR_train_HR", r"(?:.*/)?\d{7}/(\d{7}\.png)"),),
            )
            for number in range(17)
        ),
        Archive(
            "val1.tar.gz",
            f"{_LSDIR}/resolve/main/val1.tar.gz",
            (Target("LSDIR/LSDIR_valid_HR", r"(?:.*/)?HR/val/(\d{7}\.png)", 250),),
            required=False,
        ),
    ),
    folders=(
        HrFolder("LSDIR/LSDIR_train_HR", "LSDIR/LSDIR_train_LR_bicubic", 84991),
        HrFolder("LSDIR/LSDIR_valid_HR", "LSDIR/LSDIR_valid_LR_bicubic", 250),
    ),
    train=("LSDIR/LSDIR_train_HR",),
    remark="the page asks for an account whose request is granted",
)

BENCHMARK = PublishedSet(
    page="https://github.com/sanghyun-son/EDSR-PyTorch",
    archives=(
        Archive(
            "benchmark.tar",
            f"{_EDSR}/benchmark.tar",
            tuple(target for name, entry in _BENCHMARKS.items() for target in _benchmark(name, *entry)),
            md5="4ace41d33c2384b97e6b320cd0afd6ba",
        ),
    ),
    folders=tuple(
        HrFolder(f"benchmark/{name}/HR", f"benchmark/{name}/LR_bicubic", count)
        for name, (_, count) in _BENCHMARKS.items()
    ),
    remark="Manga109 is not in it: its authors give it on request, http://www.manga109.org/en/",
)

SETS = {
    "DIV2K": DIV2K,
    "Flickr2K": FLICKR2K,
    "DF2K": PublishedSet(
        page=f"{DIV2K.page} and {FLICKR2K.page}",
        archives=(*DIV2K.archives, *FLICKR2K.archives),
        folders=(*DIV2K.folders, *FLICKR2K.folders),
        train=(*DIV2K.train, *FLICKR2K.train),
    ),
    "LSDIR": LSDIR,
    "benchmark": BENCHMARK,
}

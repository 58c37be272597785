"""Options of the shipped files, with images of our own making, ready to be run on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.config.load import load_options
from basicsr.config.schema import thaw

ROOT = Path(__file__).resolve().parents[1]
PLAIN: Mapping[str, Any] = {"amp": "none", "channels_last": False}
FAST: Mapping[str, Any] = {"amp": "bf16", "channels_last": True}
PAIRS = ("edsr", "rcan", "swinir")


def shipped_options(file: str, images: Path, batch: int, **changes: Any) -> dict[str, Any]:
    """The options of a file under options/train as plain dicts, without validation, its teacher random.

    Where the file leaves the precision to the machine, it is float32 unless `changes` say otherwise.

    Args:
        file: name of the file, without ending.
        images: a folder with HR and LR, whose names are equal.
        batch: images to a batch.
        **changes: of top-level options, such as `amp`.
    """
    data: dict[str, Any] = thaw(load_options(ROOT / f"options/train/{file}.yml", training=True, paths=False))
    train = data["datasets"]["train"]
    train.update(dataroot_gt=str(images / "HR"), dataroot_lq=str(images / "LR"), filename_tmpl="{}")
    train.update(batch_size_per_gpu=batch, num_worker_per_gpu=0)
    data["datasets"] = {"train": train}
    data["path"] = {"allow_random_teacher": True}
    data["val"] = {}
    data["amp"] = "none" if data["amp"] == "auto" else data["amp"]
    data.update(changes)
    return data

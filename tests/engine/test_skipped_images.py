"""Images that training may do without are counted by pairs, whichever of their files are bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.base import Skipped
from basicsr.data.batch import Batch
from basicsr.engine.inputs import check_datasets
from basicsr.engine.logs.run_log import SkippedImages
from basicsr.engine.process.distributed import RankInfo
from basicsr.utils.errors import CheckpointError, DataError

PLACE = RankInfo(torch.device("cpu"))


@pytest.fixture
def spoilt(image_pairs) -> dict[str, Any]:
    """Six pairs; of the third both files are dead links, of the fifth the LR file is."""
    gt, lq = image_pairs(scale=2, count=6, size=24)
    for path in (gt / "img002.png", lq / "img002x2.png", lq / "img004x2.png"):
        path.unlink()
        path.symlink_to("gone")
    block = {"name": "Set5", "type": "PairedImageDataset", "phase": "train", "scale": 2, "gt_size": 32}
    return {**block, "dataroot_gt": str(gt), "dataroot_lq": str(lq), "filename_tmpl": "{}x2"}


def test_before_the_run(spoilt):
    dataset = build_dataset(spoilt)
    (bad,), _ = check_datasets([(dataset, DatasetOptions(**spoilt, skip_bad_images=2))], PLACE)
    assert [Path(image.path).name for image in bad] == ["img002.png", "img002x2.png", "img004x2.png"]
    with pytest.raises(DataError, match="2 of 6 images of dataset Set5 cannot be used"):
        check_datasets([(dataset, DatasetOptions(**spoilt, skip_bad_images=1))], PLACE)


def test_a_list_that_cannot_be_read_is_told_before_the_first_iteration(tmp_path):
    (tmp_path / "skipped_images.txt").mkdir()
    with pytest.raises(CheckpointError, match=r"skipped_images\.txt cannot be read .*; remove it"):
        SkippedImages(tmp_path, 1, {})


def test_while_it_runs(tmp_path):
    skipped = SkippedImages(tmp_path, 1, {})
    empty = torch.zeros(1, 3, 2, 2)
    notes = (Skipped(2, "HR/a.png: x"), Skipped(2, "LR/a.png: x"))
    skipped.note([Batch(empty, empty, ("",), ("",), torch.zeros(1, dtype=torch.int64), notes)])
    assert len(skipped.share()) == 2 and skipped.too_many is None
    skipped.note([Batch(empty, empty, ("",), ("",), torch.zeros(1, dtype=torch.int64), (Skipped(4, "LR/b.png: x"),))])
    skipped.share()
    assert "2 training images cannot be used, skip_bad_images allows 1" in str(skipped.too_many)

"""Images of an evaluation: what they are, and that each is decoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from basicsr.files.images import imwrite
from basicsr.report import comparison
from basicsr.report.comparison import SavedPictures
from basicsr.utils.errors import DataError


class Images:
    """Two images that note when they are read; the second is gray and has no HR image."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        if index:
            return {"lq": torch.full((1, 4, 5), 0.2)}
        return {"lq": torch.zeros(3, 4, 5), "gt": torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1).expand(3, 8, 10)}


@pytest.fixture
def images():
    return Images()


@pytest.fixture
def saved(images, tmp_path):
    return SavedPictures({"Set5": images}, {"Set5": ["a", "b"]}, folder=tmp_path, by_network=True, suffix="run")


def test_images_are_bgr_of_8_bits_gray_ones_too(saved):
    assert saved.hr("Set5", "a").shape == (8, 10, 3) and saved.hr("Set5", "a")[0, 0].tolist() == [0, 51, 255]
    assert saved.lr("Set5", "a").dtype == np.uint8
    assert saved.hr("Set5", "b") is None and (saved.lr("Set5", "b") == 51).all()


def test_hr_and_lr_are_decoded_once_whatever_is_asked(saved, images):
    for _ in range(3):
        for image in "ab":
            saved.hr("Set5", image), saved.lr("Set5", image)
    assert images.read == [0, 1]


def test_outputs_are_the_saved_files(saved):
    imwrite(np.full((8, 10, 3), 7, np.uint8), saved.path("student", "Set5", "a"))
    assert (saved.output("student", "Set5", "a") == 7).all()


def test_beyond_a_limit_the_least_recently_used_images_are_dropped(saved, images, monkeypatch):
    monkeypatch.setattr(comparison, "_MOST_BYTES", 300)  # image a has 300 bytes, b 60
    for image in ("a", "b", "b", "a", "a"):
        saved.lr("Set5", image)
    assert images.read == [0, 1, 0]


def test_a_missing_output_is_named(saved):
    with pytest.raises(DataError, match=r"cannot read .*student.Set5.a_run.png: .*; run the test again"):
        saved.output("student", "Set5", "a")

"""A teacher's cache as a dataset reads it: the coding, the place of every patch, names, and lists of unknown origin."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.caching import codes_of, write_codes

from basicsr.data import build_dataset
from basicsr.data.batch import collate
from basicsr.data.checks.notes import VERSION, digests_of
from basicsr.data.storage import ImageRoot, StoredImages
from basicsr.data.teacher_outputs import (
    MANIFEST,
    CachedImage,
    CacheKey,
    Manifest,
    cached_names,
    count_clipped,
    decode,
    encode,
    read_manifest,
    write_manifest,
)
from basicsr.files.images import encode_png
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.randomness import generator

KEY = CacheKey(
    teacher="ab" * 32,
    param_key="params",
    strict=True,
    network={"type": "EDSR"},
    architecture="EDSR",
    scale=2,
    self_ensemble=False,
    precision="none",
)


def test_codes_are_those_of_the_equation_and_decode_to_within_half_a_step():
    image = torch.linspace(-0.7, 1.7, 3 * 67 * 5).reshape(3, 67, 5)
    codes = encode(image)
    expected = np.empty((67, 5, 3))
    for channel, row, column in np.ndindex(3, 67, 5):
        clipped = min(max(float(image[channel, row, column]), -0.5), 1.5)
        expected[row, column, 2 - channel] = round((clipped + 0.5) / 2 * 65535)  # BGR
    assert codes.dtype == np.uint16 and np.array_equal(codes, expected)
    assert count_clipped(codes) == (image <= -0.5).sum() + (image >= 1.5).sum()
    rgb = torch.from_numpy(codes[..., ::-1].astype(np.int32).transpose(2, 0, 1).copy())
    error = (decode(rgb).double() - image.double().clamp(-0.5, 1.5)).abs().max()
    assert error <= 1 / 65535 + 2e-7
    assert 1 / 255 / (2 / 65535) > 128, "steps to an 8-bit level"


@pytest.fixture
def options(tmp_path):
    """Options for a pair of 40x48 whose cache has a known function of the HR image."""
    gt = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    for folder, name, img in (("HR", "a", gt), ("LR", "ax2", gt[::2, ::2])):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / f"{name}.png"), img)
    write_codes(tmp_path / "cache", "a", gt)
    return {
        "type": "PairedImageDataset",
        "dataroot_gt": str(tmp_path / "HR"),
        "dataroot_lq": str(tmp_path / "LR"),
        "filename_tmpl": "{}x2",
        "scale": 2,
        "phase": "train",
        "gt_size": 16,
        "teacher_cache": str(tmp_path / "cache"),
    }


def expected_output(gt: torch.Tensor) -> torch.Tensor:
    """What a patch of HR has as its teacher's output, by `codes_of`."""
    pixels = (collate([{"lq": gt, "gt": gt}], [0]).to("cpu").gt[0] * 255).round().numpy().astype(np.uint8)
    codes = codes_of(pixels[::-1].transpose(1, 2, 0)).astype(np.float64)
    return torch.from_numpy((codes / 65535 * 2 - 0.5).transpose(2, 0, 1)[::-1].copy())


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rot": False, "use_vflip": True}, {"gt_size": 64, "extend_small": True}],
    ids=["rotated", "flipped", "extended"],
)
def test_outputs_are_cut_and_turned_as_hr(options, changes):
    dataset = build_dataset({**options, **changes})
    plain = build_dataset({key: value for key, value in {**options, **changes}.items() if key != "teacher_cache"})
    for seed in range(12):
        size = None if seed % 2 or changes.get("extend_small") else 12  # progressive training asks for other sizes
        item = dataset.load(0, generator(seed, "sample"), size)
        without = plain.load(0, generator(seed, "sample"), size)
        assert torch.equal(item["gt"], without["gt"]) and torch.equal(item["lq"], without["lq"])
        batch = collate([item], [0]).to("cpu")
        assert batch.sr_teacher.shape == batch.gt.shape and batch.sr_teacher.dtype == torch.float32
        assert (batch.sr_teacher[0].double() - expected_output(item["gt"])).abs().max() < 2e-7


def test_keys_of_a_database_name_the_outputs_too(options, tmp_path):
    for folder, name in (("HR", "a"), ("LR", "ax2")):
        img = cv2.imread(str(tmp_path / folder / f"{name}.png"))
        with LmdbMaker(str(tmp_path / f"{folder}.lmdb")) as maker:
            maker.put(encode_png(img, 1), "sub/a", img.shape)
    write_codes(tmp_path / "cache", "sub/a", cv2.imread(str(tmp_path / "HR/a.png")))
    (tmp_path / "cache/a.ppm").unlink()
    roots = {"dataroot_gt": str(tmp_path / "HR.lmdb"), "dataroot_lq": str(tmp_path / "LR.lmdb")}
    item = build_dataset({**options, **roots, "io_backend": {"type": "lmdb"}}).load(0, generator(1, "sample"))
    batch = collate([item], [0]).to("cpu")
    assert (batch.sr_teacher[0].double() - expected_output(item["gt"])).abs().max() < 2e-7


def test_outputs_that_are_missing_or_of_another_size_are_told_in_a_line(options, tmp_path):
    path = tmp_path / "cache/a.ppm"
    write_codes(tmp_path / "cache", "a", np.zeros((40, 46, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.ppm: it is 40 x 46 of 16 bits, .* would be 40 x 48 of 16; make it by"):
        build_dataset(options).load(0, generator(0, "sample"))
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.ppm: No such file"):
        build_dataset(options).load(0, generator(0, "sample"))
    for changes in ({"phase": "val", "gt_size": None}, {"color": "y"}, {"mean": [0.5, 0.5, 0.5]}):
        with pytest.raises(OptionsError, match="teacher_cache is for training on RGB"):
            build_dataset({**options, **changes})


def test_names_are_those_below_the_hr_folder_and_stay_apart():
    def names(*files: str) -> list[str]:
        return cached_names(
            StoredImages({"gt": files, "lq": files}, {"gt": ImageRoot("/d/HR"), "lq": ImageRoot("/d/LR")})
        )

    assert names("/d/HR/b.png", "/d/HR/sub/a.x.png") == ["b", "sub/a.x"]
    with pytest.raises(DataError, match=r"a\.png and .*a\.jpg differ in their endings only; rename one"):
        names("/d/HR/a.png", "/d/HR/a.jpg")
    with pytest.raises(DataError, match="cannot name a file of a teacher's cache"):
        names("/d/HR/../a.png")


def test_lists_of_unknown_origin_are_refused_in_a_line(tmp_path):
    images = (CachedImage(name="a", lq="00" * 32), CachedImage(name="sub/b", lq="11" * 32, size=(4, 6), bytes=150))
    write_manifest(tmp_path, Manifest(complete=False, key=KEY, images=images))
    path = tmp_path / MANIFEST
    content = path.read_text()
    assert read_manifest(tmp_path) == Manifest(complete=False, key=KEY, images=images)
    good = json.loads(content)
    wrong = {
        r"damaged \(it says nothing of some outputs\)": {**good, "complete": True},
        "format 2, this version reads 1": {**good, "format": 2},
        r"damaged \(at images.0.name\)": {**good, "images": [{"name": 3, "lq": ""}]},
        r"damaged \(at key.scale\)": {**good, "key": {**good["key"], "scale": "2"}},
        r"damaged \(range or names\)": {**good, "images": [{"name": "../../a", "lq": ""}]},
        r"damaged \(at the beginning\)": content[:100],
        r"damaged \(at images\)": {**good, "images": []},
    }
    for message, changed in wrong.items():
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with pytest.raises(DataError, match=message) as caught:
            read_manifest(tmp_path)
        assert "\n" not in str(caught.value) and "scripts/cache_teacher.py" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"is no teacher's cache: it has no cache\.json"):
        read_manifest(tmp_path)
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"cache\.json: it is no file but a pipe; check the path"):
        read_manifest(tmp_path)


def test_digests_are_remembered_until_size_or_time_change(tmp_path, monkeypatch):
    monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "notes"))
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(file.name.encode() * 3_000_000)
    read: list[str] = []

    def digests() -> list[str]:
        def bar(items, total):
            read.append(total)
            return items

        return digests_of([str(file) for file in files], ImageRoot(str(tmp_path)), bar)

    first = digests()
    assert first == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert digests() == first
    files[1].write_bytes(b"c" * 3_000_001)
    assert digests() == [first[0], hashlib.sha256(b"c" * 3_000_001).hexdigest()]
    for notes in Path(tmp_path / "notes").iterdir():
        notes.write_text(json.dumps({"version": VERSION, "root": str(tmp_path), "images": {"a": [math.pi]}}))
    assert digests()[0] == first[0]
    assert read == [2, 0, 1, 2]

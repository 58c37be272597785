"""Training on shards of a web server, with any workers, killed and continued, is that on folders, bit for bit."""

from __future__ import annotations

import sys
import time

import pytest
from support.data_scripts import SCRIPTS
from support.training import changed, differences, finish, start, train, without_teacher
from support.web import serving

sys.path.insert(0, str(SCRIPTS))

import create_shards


@pytest.fixture
def options(mcadkd):
    return without_teacher(mcadkd, train__total_iter=6, val__val_freq=6, logger__save_checkpoint_freq=2)


@pytest.fixture
def shards(options, tmp_path):
    block = options["datasets"]["train"]
    arguments = [
        "--hr",
        block["dataroot_gt"],
        "--lr",
        block["dataroot_lq"],
        "--filename-tmpl",
        "{}x2",
        "--workers",
        "1",
    ]
    assert create_shards.main([*arguments, "--output", str(tmp_path / "shards"), "--shard-size", "0.01"]) == 0
    return tmp_path / "shards"


def on(options, root: str, workers: int, **changes) -> dict:
    block = {**options["datasets"]["train"], "dataroot_gt": root, "dataroot_lq": root, "num_worker_per_gpu": workers}
    return changed(options, datasets__train={**block, "io_backend": {"type": "webdataset"}}, **changes)


def test_workers_kills_and_where_the_images_lie_change_no_bit(options, shards, tmp_path):
    whole = finish(options, tmp_path / "whole")
    with serving(shards) as server:
        away = on(options, server.url, workers=4)
        process = start(train, away, str(tmp_path / "away"))
        first = tmp_path / "away/experiments/tiny/training_states/2.json"
        deadline = time.monotonic() + 60
        while not first.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert first.exists()
        # The run goes on from the shards on the disk, without workers: the same images by the same names.
        assert differences(whole, finish(on(options, str(shards), workers=0), tmp_path / "away")) == []
        assert differences(whole, finish(away, tmp_path / "again")) == []

"""Every shipped training file builds, trains and resumes at reduced size, on one rank and on two, killed or not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.shipped import check_student, reduced, trains_and_resumes
from support.training import changed, checkpoint_of, differences, finish, run_ranks, start, train, train_rank_all

from basicsr.utils.options import load_options
from basicsr.utils.yaml_loader import load_yaml

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "train"
FILES = sorted(OPTIONS.glob("*.yml"))
RESTORED = ("_gopro", "_rain13k")
ONE_SCALE = [file for file in FILES if not file.stem.endswith(("_x3", "_x4")) or "c64b16" in file.stem]
OTHER_SCALES = [file for file in FILES if file not in ONE_SCALE]


def reduced_file(file: Path, image_pairs) -> dict[str, Any]:
    return reduced(load_options(file, training=True, paths=False), image_pairs)


@pytest.mark.parametrize("file", OTHER_SCALES, ids=lambda file: file.stem)
def test_a_file_of_another_scale_is_built_and_trains(file, image_pairs, tmp_path):
    options = reduced_file(file, image_pairs)
    finish(options, tmp_path)
    check_student(options, tmp_path / "experiments" / options["name"])


@pytest.mark.long
@pytest.mark.parametrize("file", OTHER_SCALES, ids=lambda file: file.stem)
def test_a_file_of_another_scale_resumes_bitwise(file, image_pairs, tmp_path):
    trains_and_resumes(reduced_file(file, image_pairs), tmp_path)


def with_two_networks(image_pairs) -> dict[str, Any]:
    """The piece of options/methods that no table has: CSD with a frozen teacher."""
    options = reduced_file(OPTIONS / "kd_edsr_x2.yml", image_pairs)
    method = load_yaml(OPTIONS.parent / "methods/csd_two_networks.yml").data()["train"]["distill"]["csd"]
    return changed(options, name="csd_two_networks", train__distill={"csd": {**method, "vgg_weights": "random"}})


@pytest.mark.parametrize("file", [*ONE_SCALE, None], ids=lambda file: file.stem if file else "csd_two_networks")
def test_a_killed_run_of_a_shipped_file_ends_as_one_that_was_not(file, image_pairs, tmp_path):
    options = reduced_file(file, image_pairs) if file else with_two_networks(image_pairs)
    options = changed(options, train__total_iter=4, val__val_freq=4)
    expected = finish(options, tmp_path / "whole")
    states = tmp_path / "killed/experiments" / options["name"] / "training_states"
    process = start(train, options, str(tmp_path / "killed"))
    while not (states / "2.json").exists() and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert (states / "2.json").exists()
    assert differences(expected, finish(options, tmp_path / "killed")) == []
    check_student(options, states.parent)


def of_distinct_kinds(image_pairs) -> list[dict[str, Any]]:
    """Of the files of one scale those with a network, a dataset, a method or a set of losses that none before has."""
    chosen: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for file in ONE_SCALE:
        options = reduced_file(file, image_pairs)
        train, dataset = options["train"], options["datasets"]["train"]
        kinds = {
            ("network", options["network_g"]["type"]),
            ("dataset", dataset["type"], "gt_sizes" in dataset),
            ("losses", frozenset(key for key, value in train.items() if value)),
            *(("method", method["type"]) for method in train.get("distill", {}).values()),
        }
        if kinds - seen:
            seen |= kinds
            chosen.append(options)
    return chosen


def test_files_of_each_kind_train_and_resume_bitwise_on_two_ranks(image_pairs, tmp_path):
    train_and_resume_on_two_ranks([*of_distinct_kinds(image_pairs), with_two_networks(image_pairs)], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_every_shipped_file_trains_and_resumes_bitwise_on_two_ranks(part, image_pairs, tmp_path):
    train_and_resume_on_two_ranks([reduced_file(file, image_pairs) for file in FILES[part::4]], tmp_path)


def train_and_resume_on_two_ranks(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    run_ranks(train_rank_all, 2, runs, str(tmp_path))
    folders = [tmp_path / "experiments" / options["name"] for options in runs]
    expected = [checkpoint_of(folder, 3) for folder in folders]
    for folder in folders:
        (folder / "training_states/3.json").unlink()
    run_ranks(train_rank_all, 2, runs, str(tmp_path))
    for folder, before in zip(folders, expected, strict=True):
        assert differences(before, checkpoint_of(folder, 3)) == [], folder.name

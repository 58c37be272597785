"""Every shipped training file is built and trains at reduced size; those that repeat no other are killed and resumed.

One file of each kind trains and resumes on two ranks. At length all files resume, on one rank and on two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.shipped import check_student, reduced, train_all, train_and_resume
from support.training import (
    changed,
    checkpoint_of,
    differences,
    run_ranks,
    start,
    train,
    train_rank_all,
)

from basicsr.config.load import load_options
from basicsr.config.yaml_files import load_yaml

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "train"
FILES = sorted([*OPTIONS.glob("*.yml"), *OPTIONS.parent.glob("recipes/*.yml")])
READ_OTHERWISE = ("mcadkd_equations", "mcadkd_as_published", "dckd_as_published")
READ_OTHERWISE_FIRST = ("mcadkd_equations_edsr_x2", "mcadkd_as_published_edsr_x2", "dckd_as_published_rcan_x2")


def repeats(name: str) -> bool:
    """Whether a file repeats another one at another scale, for other images, or another reading for a network."""
    if name.startswith(READ_OTHERWISE):
        return name not in READ_OTHERWISE_FIRST
    return name.endswith("_rain13k") or (name.endswith(("_x3", "_x4")) and "c64b16" not in name)


FIRST = [file for file in FILES if not repeats(file.stem)]
REPEATED = [file for file in FILES if repeats(file.stem)]
KILLED = [*FIRST, None]  # without a file: see `with_two_networks`


def reduced_file(file: Path, image_pairs) -> dict[str, Any]:
    return reduced(load_options(file, training=True, paths=False), image_pairs)


@pytest.mark.parametrize("part", range(10))
def test_files_that_repeat_others_are_built_and_train(part, image_pairs, tmp_path):
    runs = [reduced_file(file, image_pairs) for file in REPEATED[part::10]]
    train_all(runs, tmp_path)
    for options in runs:
        check_student(options, tmp_path / "experiments" / options["name"])


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_files_that_repeat_others_resume_bitwise(part, image_pairs, tmp_path):
    train_and_resume([reduced_file(file, image_pairs) for file in REPEATED[part::10]], tmp_path)


def with_two_networks(image_pairs) -> dict[str, Any]:
    """The piece of options/methods that no table has: CSD with a frozen teacher."""
    options = reduced_file(OPTIONS / "kd_edsr_x2.yml", image_pairs)
    method = load_yaml(OPTIONS.parent / "methods/csd_two_networks.yml").data()["train"]["distill"]["csd"]
    return changed(options, name="csd_two_networks", train__distill={"csd": {**method, "vgg_weights": "random"}})


@pytest.mark.parametrize("part", range(12))
def test_killed_runs_of_shipped_files_end_as_those_that_were_not(part, image_pairs, tmp_path):
    runs = [reduced_file(file, image_pairs) if file else with_two_networks(image_pairs) for file in KILLED[part::12]]
    runs = [changed(options, train__total_iter=4, val__val_freq=4) for options in runs]
    train_all(runs, tmp_path / "whole")
    for options in runs:
        states = tmp_path / "killed/experiments" / options["name"] / "training_states"
        process = start(train, options, str(tmp_path / "killed"))
        while not (states / "2.json").exists() and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert (states / "2.json").exists() and not (states / "4.json").exists(), options["name"]
    train_all(runs, tmp_path / "killed")
    for options in runs:
        whole, killed = (tmp_path / root / "experiments" / options["name"] for root in ("whole", "killed"))
        assert differences(checkpoint_of(whole, 4), checkpoint_of(killed, 4)) == [], options["name"]
        check_student(options, killed)


def of_distinct_kinds(image_pairs) -> list[dict[str, Any]]:
    """Of the files that repeat none, few that have every network, method and kind of model among them."""
    runs = {file.stem: reduced_file(file, image_pairs) for file in FIRST}
    kinds = {
        name: {
            options["network_g"]["type"],
            *(method["type"] for method in options["train"].get("distill", {}).values()),
            "adversary" if options.get("network_d") else options["model_type"],
        }
        for name, options in runs.items()
    }
    chosen: list[str] = []
    while missing := set().union(*kinds.values()).difference(*(kinds[name] for name in chosen)):
        chosen.append(max(kinds, key=lambda name: len(kinds[name] & missing)))
    return [runs[name] for name in chosen]


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

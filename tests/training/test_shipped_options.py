"""Every shipped training file builds, trains and resumes at reduced size, on one rank and on two, killed or not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import changed, checkpoint_of, differences, finish, run_ranks, start, train, train_rank_all

from basicsr.archs import build_network
from basicsr.utils.options import load_options
from basicsr.utils.options_schema import thaw
from basicsr.utils.yaml_loader import load_yaml

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "train"
FILES = sorted(OPTIONS.glob("*.yml"))
RESTORED = ("_gopro", "_rain13k")
ONE_SCALE = [file for file in FILES if not file.stem.endswith(("_x3", "_x4")) or "c64b16" in file.stem]
SMALL = {"num_feat": 8, "num_block": 2, "num_group": 2, "squeeze_factor": 4, "embed_dim": 8}
SMALL_RESTORERS = {
    "NAFNet": {"width": 4, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "Restormer": {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}
RANDOM_WEIGHTS = {"SharedCSD": "vgg_weights", "CSD": "vgg_weights", "DCKD": "vqgan_weights"}


def reduced(file: Path, image_pairs) -> dict[str, Any]:
    """The file's options with small networks, crops, batches and images, all else as shipped."""
    options = thaw(load_options(file, training=True, paths=False))
    scale = options["scale"]
    gt, lq = image_pairs(scale=scale, count=3, size=24 if scale == 1 else 16, folder=f"x{scale}")
    for name in ("network_g", "network_t"):
        network = options.get(name) or {}
        network.update({key: value for key, value in SMALL.items() if key in network})
        if "depths" in network:
            network.update(depths=[1, 1], num_heads=[2, 2], img_size=8, window_size=4)
        network.update(SMALL_RESTORERS.get(network.get("type"), {}))
    if "num_feat" in (options.get("network_t") or {}):
        options["network_t"]["num_feat"] = 12  # wider than the student
    if options.get("network_d"):
        options["network_d"]["num_feat"] = 4
    for key, dataset in options["datasets"].items():
        dataset.update(dataroot_gt=str(gt), dataroot_lq=str(lq), filename_tmpl=f"{{}}x{scale}")
        if key == "train":
            # At scale 1 the encoder of DCKD wants more than 8 pixels.
            dataset.update(gt_size=8 * max(scale, 2), num_worker_per_gpu=0, batch_size_per_gpu=3)
        if "gt_sizes" in dataset:
            dataset.update(gt_size=24, gt_sizes=[16, 24], mini_batch_sizes=[3, 1], iters=[2, 4])
    contrastive = options["train"].get("contrastive_opt")
    if contrastive:
        contrastive.update(patch_size=6, num_patches=3, embed_dim=8)
    for method in options["train"].get("distill", {}).values():
        if method["type"] in RANDOM_WEIGHTS:
            method[RANDOM_WEIGHTS[method["type"]]] = "random"
    options["path"] = {"allow_random_teacher": True}
    options["train"]["total_iter"] = 3
    options["val"]["val_freq"] = 3
    options["logger"].update(save_checkpoint_freq=2, use_tb_logger=False)
    return changed(options, num_gpu=0, dist_params__backend="gloo")


@pytest.mark.parametrize("file", [file for file in FILES if file not in ONE_SCALE], ids=lambda file: file.stem)
def test_shipped_file_trains_and_resumes_bitwise(file, image_pairs, tmp_path):
    options = reduced(file, image_pairs)
    expected = finish(options, tmp_path)
    folder = tmp_path / "experiments" / options["name"]
    (folder / "training_states/3.json").unlink()
    assert differences(expected, finish(options, tmp_path)) == []
    check_student(options, folder)


def check_student(options: dict[str, Any], folder: Path) -> None:
    """What is exported is the student, and nothing of any helper."""
    saved = torch.load(folder / "models/net_g_latest.pth", weights_only=True)["params"]
    build_network(options["network_g"]).load_state_dict(saved)


def with_two_networks(image_pairs) -> dict[str, Any]:
    """The piece of options/methods that no table has: CSD with a frozen teacher."""
    options = reduced(OPTIONS / "kd_edsr_x2.yml", image_pairs)
    method = load_yaml(OPTIONS.parent / "methods/csd_two_networks.yml").data()["train"]["distill"]["csd"]
    return changed(options, name="csd_two_networks", train__distill={"csd": {**method, "vgg_weights": "random"}})


@pytest.mark.parametrize("file", [*ONE_SCALE, None], ids=lambda file: file.stem if file else "csd_two_networks")
def test_a_killed_run_of_a_shipped_file_ends_as_one_that_was_not(file, image_pairs, tmp_path):
    options = reduced(file, image_pairs) if file else with_two_networks(image_pairs)
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


@pytest.mark.parametrize("part", range(2))
def test_files_of_one_scale_train_and_resume_bitwise_on_two_ranks(part, image_pairs, tmp_path):
    runs = [reduced(file, image_pairs) for file in ONE_SCALE[part::2]] + [with_two_networks(image_pairs)] * (part == 0)
    train_and_resume_on_two_ranks(runs, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_every_shipped_file_trains_and_resumes_bitwise_on_two_ranks(part, image_pairs, tmp_path):
    train_and_resume_on_two_ranks([reduced(file, image_pairs) for file in FILES[part::4]], tmp_path)


def train_and_resume_on_two_ranks(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    run_ranks(train_rank_all, 2, runs, str(tmp_path))
    folders = [tmp_path / "experiments" / options["name"] for options in runs]
    expected = [checkpoint_of(folder, 3) for folder in folders]
    for folder in folders:
        (folder / "training_states/3.json").unlink()
    run_ranks(train_rank_all, 2, runs, str(tmp_path))
    for folder, before in zip(folders, expected, strict=True):
        assert differences(before, checkpoint_of(folder, 3)) == [], folder.name

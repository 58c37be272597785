"""Shipped options, small enough to be trained by in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.training import changed, checkpoint_of, differences, start, train_each

from basicsr.archs import build_network
from basicsr.config.schema import Options, thaw
from basicsr.quantization.network import quantization_of
from basicsr.weights.loading import load_network

SMALL = {
    "num_feat": 8,
    "num_block": 2,
    "num_conv": 2,
    "num_group": 2,
    "squeeze_factor": 4,
    "embed_dim": 8,
    "num_layer": 4,
}
SMALL_RESTORERS = {
    "NAFNet": {"width": 4, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "Restormer": {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}
RANDOM_WEIGHTS = {"SharedCSD": "vgg_weights", "CSD": "vgg_weights", "DCKD": "vqgan_weights"}


def reduced(loaded: Options, image_pairs) -> dict[str, Any]:
    """The options with small networks, crops, batches and images, all else as shipped; a run of 3 iterations."""
    options = thaw(loaded)
    if options["amp"] == "auto":  # two runs that are compared must not depend on what a clock says to each
        options["amp"] = "none"
    scale = options["scale"]
    gt, lq = image_pairs(scale=scale, count=3, size=24 if scale == 1 else 16, folder=f"x{scale}")
    for name in ("network_g", "network_t"):
        network = options.get(name) or {}
        if network.get("type") == "auto":  # as wide as a student, so made wider below
            network.clear()
            network.update({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": scale})
        network.update({key: value for key, value in SMALL.items() if key in network})
        if "depths" in network:
            network.update(depths=[1, 1], num_heads=[2, 2], img_size=8, window_size=4)
        network.update(SMALL_RESTORERS.get(network.get("type"), {}))
    if "num_feat" in (options.get("network_t") or {}):
        options["network_t"]["num_feat"] = 12  # wider than the student
    if options.get("network_d"):
        options["network_d"]["num_feat"] = 4
    for key, dataset in options["datasets"].items():
        if dataset.get("dataroot_lq") is not None:  # else LR images are made
            dataset.update(dataroot_lq=str(lq), filename_tmpl=f"{{}}x{scale}")
        if dataset.get("dataroot_gt") is not None:
            dataset["dataroot_gt"] = str(gt)
        if dataset.get("share") is not None:  # so that a few iterations are of both kinds
            dataset["share"] = 0.5
        if key.startswith("train"):
            # At scale 1 the encoder of DCKD wants more than 8 pixels.
            dataset.update(gt_size=8 * max(scale, 2), num_worker_per_gpu=0, batch_size_per_gpu=3)
        if "gt_sizes" in dataset:
            dataset.update(gt_size=24, gt_sizes=[16, 24], mini_batch_sizes=[3, 1], iters=[2, 4])
    for method in options["train"].get("distill", {}).values():
        if method["type"] == "HybridContrastive":
            method.update(patch_size=6, num_patches=3, embed_dim=8)
        for taps in ("student_taps", "teacher_taps"):
            if method.get(taps) == ["body.7"]:  # the end of eight blocks
                method[taps] = ["body.1"]
        if method["type"] in RANDOM_WEIGHTS:
            method[RANDOM_WEIGHTS[method["type"]]] = "random"
    if "perceptual_opt" in options["train"]:
        options["train"]["perceptual_opt"]["vgg_weights"] = "random"
    options["path"] = {"allow_random_teacher": True}
    options["train"]["total_iter"] = 3
    options["val"]["val_freq"] = 3
    options["logger"].update(save_checkpoint_freq=2, use_tb_logger=False)
    return changed(options, num_gpu=0, dist_params__backend="gloo")


def check_student(options: dict[str, Any], folder: Path) -> None:
    """What is exported is the student, and nothing of any helper."""
    network = build_network(options["network_g"])
    load_network(network, folder / "models/net_g_latest.pth")
    assert (quantization_of(network) is not None) == ("quantize" in options["train"])


def train_all(runs: list[dict[str, Any]], root: Path) -> None:
    """Trains one run after the other, in a process that they share."""
    process = start(train_each, runs, str(root))
    process.join()
    assert process.exitcode == 0
    for options in runs:
        assert (root / "experiments" / options["name"] / "models/net_g_latest.pth").exists()


def train_and_resume(runs: list[dict[str, Any]], root: Path) -> None:
    """Runs that lose their last iteration and do it again, in another process, end with equal bits, a student alone."""
    train_all(runs, root)
    folders = [root / "experiments" / options["name"] for options in runs]
    expected = [checkpoint_of(folder, 3) for folder in folders]
    for folder in folders:
        (folder / "training_states/3.json").unlink()
    train_all(runs, root)
    for options, folder, before in zip(runs, folders, expected, strict=True):
        assert differences(before, checkpoint_of(folder, 3)) == [], folder.name
        check_student(options, folder)

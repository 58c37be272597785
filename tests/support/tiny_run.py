"""Options of a small training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}


def tiny_mcadkd(image_pairs: Callable[..., tuple[Path, Path]]) -> dict[str, Any]:
    """A tiny MCAD-KD run over 7 images: every part of the method, a few milliseconds an iteration."""
    gt, lq = image_pairs(count=7, size=24)
    val_gt, val_lq = image_pairs(count=3, size=20, folder="val", seed=1)
    common = {"type": "PairedImageDataset", "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}}
    return {
        "name": "tiny",
        "model_type": "MCADKD",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {
            "train": {
                **common,
                "name": "train",
                "dataroot_gt": str(gt),
                "dataroot_lq": str(lq),
                "gt_size": 32,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
            },
            "val": {**common, "name": "val", "dataroot_gt": str(val_gt), "dataroot_lq": str(val_lq)},
        },
        "network_g": dict(EDSR),
        "network_t": {**EDSR, "num_feat": 12, "num_block": 3},
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "path": {"allow_random_teacher": True},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "optim_d": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [10, 30], "gamma": 0.5},
            "total_iter": 8,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 3.0},
            "resp_kd_opt": {"type": "L1Loss", "loss_weight": 0.5},
            "contrastive_opt": {"type": "hybrid", "patch_size": 12, "num_patches": 4, "embed_dim": 16},
            "adversarial_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.01},
        },
        "val": {
            "val_freq": 8,
            "metrics": {
                "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
                "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
            },
        },
        "logger": {"print_freq": 4, "save_checkpoint_freq": 4, "use_tb_logger": False},
        "dist_params": {"backend": "gloo"},
    }

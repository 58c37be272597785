"""Shared fixtures: small image folders, a small run, and few threads so that parallel tests do not fight for cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What runs remember of images goes to a folder of the tests' own; processes that they start inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASICSR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_pairs(root: Path, scale: int, names: list[str], size: int = 48, seed: int = 0) -> tuple[Path, Path]:
    """Writes smooth random HR images (`size` pixels a side, LR coordinates times scale) and their LR averages."""
    generator = np.random.default_rng(seed)
    gt_root, lq_root = root / "HR", root / f"LR_X{scale}"
    for folder in (gt_root, lq_root):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        coarse = generator.uniform(0, 255, (6, 6, 3)).astype(np.float32)
        gt = cv2.resize(coarse, (size * scale, size * scale), interpolation=cv2.INTER_CUBIC)
        gt = np.clip(gt + generator.normal(0, 4, gt.shape), 0, 255).astype(np.uint8)
        lq = cv2.resize(gt, (size, size), interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(gt_root / f"{name}.png"), gt)
        assert cv2.imwrite(str(lq_root / f"{name}x{scale}.png"), lq)
    return gt_root, lq_root


@pytest.fixture
def image_pairs(tmp_path: Path):
    """A function writing an image folder pair below the test's own folder: see `write_pairs`."""

    def write(scale: int = 2, count: int = 6, size: int = 24, folder: str = "data", seed: int = 0) -> tuple[Path, Path]:
        names = [f"img{index:03d}" for index in range(count)]
        return write_pairs(tmp_path / folder, scale, names, size, seed)

    return write


EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}


@pytest.fixture
def mcadkd(tmp_path: Path, image_pairs) -> dict[str, Any]:
    """Options of a tiny MCAD-KD run over 7 images: every part of the method, a few milliseconds an iteration."""
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

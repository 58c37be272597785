"""BasicSR's data sets and options for Real-ESRGAN."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kills import train_to_a_file
from support.training import changed, checkpoint_of, differences, start

from basicsr.config.load import load_options, resolved_yaml
from basicsr.config.yaml_files import load_yaml
from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.degradations.operations import sharpened
from basicsr.data.realesrgan_dataset import RealESRGANDataset, RealESRGANPairedDataset
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.training_run import TrainingRun
from basicsr.train import train_pipeline, train_step
from basicsr.utils.errors import DataError, OptionsError

# As in BasicSR's options/train/RealESRGAN: part stands at the top level, part in the data set.
TOP: dict[str, Any] = {
    "gt_size": 32,
    "queue_size": 180,
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.15, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3],
    "gray_noise_prob": 0.4,
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.3, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [30, 95],
}
BLUR: dict[str, Any] = {
    "blur_kernel_size": 21,
    "kernel_list": ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
    "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1,
    "blur_sigma": [0.2, 3],
    "betag_range": [0.5, 4],
    "betap_range": [1, 2],
}
BLURS = {**BLUR, **{f"{name}2": value for name, value in BLUR.items()}, "final_sinc_prob": 0.8}


@pytest.fixture
def real_esrgan(mcadkd, tmp_path) -> dict[str, Any]:
    """BasicSR's train_realesrgan_x2plus.yml with tiny networks, 7 images and no perceptual loss."""
    train = mcadkd["datasets"]["train"]
    names = sorted(path.name for path in Path(train["dataroot_gt"]).iterdir())
    (tmp_path / "meta_info.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    dataset = {
        "name": "DF2K+OST",
        "type": "RealESRGANDataset",
        "dataroot_gt": train["dataroot_gt"],
        "meta_info": str(tmp_path / "meta_info.txt"),
        "io_backend": {"type": "disk"},
        **BLURS,
        "gt_size": 32,
        "use_hflip": True,
        "use_rot": False,
        "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 2,
        "dataset_enlarge_ratio": 1,
        "prefetch_mode": None,
    }
    options = changed(
        mcadkd,
        model_type="RealESRGANModel",
        network_t=None,
        path={},
        train__contrastive_opt=None,
        train__resp_kd_opt=None,
        train__total_iter=3,
    )
    options["datasets"] = {**options["datasets"], "train": dataset}
    return {**options, **TOP, "l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False}


@pytest.mark.parametrize("device, then", [("auto", "training"), ("training", "training")])
def test_basicsrs_options_train_and_a_killed_run_goes_on_to_the_bit(real_esrgan, tmp_path, device, then):
    options = changed(real_esrgan, logger__save_checkpoint_freq=1)
    train_pipeline(options, root=tmp_path / "through")
    root, options = tmp_path / "killed", changed(options, datasets__train__device=device)
    process = start(train_to_a_file, options, str(root), 20)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((root / "experiments/tiny/training_states").glob("*.json"))
    options = changed(options, datasets__train__num_worker_per_gpu=4, datasets__train__device=then)
    train_pipeline(options, root=root, auto_resume=True)
    through, killed = (checkpoint_of(tmp_path / name / "experiments/tiny", 3) for name in ("through", "killed"))
    assert not differences(through, killed)


def test_options_go_where_they_belong_and_saved_ones_load_again(real_esrgan, tmp_path):
    options = load_options(real_esrgan, training=True)
    arguments = options.datasets["train"].arguments
    assert {name: arguments[name] for name in TOP if name != "queue_size"} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in TOP.items() if name != "queue_size"
    }
    assert (options.l1_gt_usm, options.percep_gt_usm, options.gan_gt_usm) == (True, True, False)
    (tmp_path / "saved.yml").write_text(resolved_yaml(options), "utf-8")
    assert load_options(load_yaml(tmp_path / "saved.yml").data(), training=True) == options


@pytest.mark.parametrize("given", [True, False])
def test_realesrnets_gt_usm_sharpens_targets_and_what_lr_is_made_of(real_esrgan, given):
    net = {**real_esrgan, "model_type": "RealESRNetModel", "gt_usm": given}
    for name in ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm", "network_d"):
        del net[name]
    net = changed(net, train__adversarial_opt=None, train__optim_d=None)
    options = load_options(net, training=True)
    assert options.l1_gt_usm is given
    assert options.datasets["train"].arguments["sharpen_hr"] is given


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gt_size": 48}, "gt_size: contradicts datasets.train.gt_size, 32; keep one, got 48"),
        ({"jpeg_range": [95, 30]}, r"jpeg_range: must have the lower limit first, got \[95, 30\]"),
        ({"resize_probe": [1, 0, 0]}, r"resize_probe: unknown key"),
        ({"high_order_degradation": False}, "high_order_degradation: trains on pairs: take .*RealESRGANPairedDataset"),
        ({"network_d": None, "train__adversarial_opt": None}, "model_type RealESRGANModel needs it"),
        ({"datasets__train__kernel_prob2": [1.0]}, "datasets.train.kernel_prob2: must have an entry for each"),
    ],
)
def test_mistakes_are_told_where_they_stand(real_esrgan, changes, message):
    with pytest.raises(OptionsError, match=message):
        load_options(changed(real_esrgan, **changes), training=True)


def test_other_models_do_not_take_its_options(mcadkd):
    with pytest.raises(OptionsError, match="queue_size: belongs to Real-ESRGAN's models and data sets"):
        load_options({**mcadkd, "queue_size": 180}, training=True)


def test_losses_compare_with_sharpened_images_where_the_options_say_so(real_esrgan, tmp_path):
    parts = {}
    for name in ("l1_gt_usm", "gan_gt_usm", None):
        flags = {key: key == name for key in ("l1_gt_usm", "percep_gt_usm", "gan_gt_usm")}
        options = load_options({**real_esrgan, **flags}, training=True, root=tmp_path)
        run = TrainingRun(options, RankInfo(device=torch.device("cpu"), rank=0, world_size=1, remark=""), None)
        batches = [batch.to("cpu") for batch in next(iter(run.loader))]
        with torch.no_grad():
            output = run.network(batches[0].lq)
        target = sharpened(batches[0].gt) if name == "l1_gt_usm" else batches[0].gt
        parts[name], _ = train_step(run, batches)
        assert float(parts[name]["l_pix"]) == pytest.approx(float((output - target).abs().mean()), rel=1e-4)
    assert parts["gan_gt_usm"]["out_d_real"] != parts[None]["out_d_real"]
    assert parts["gan_gt_usm"]["l_pix"] == parts[None]["l_pix"]


def test_the_data_set_takes_basicsrs_one_dict(real_esrgan):
    opt = {**real_esrgan["datasets"]["train"], "scale": 2, "phase": "train"}
    by_opt, by_options = RealESRGANDataset(opt), build_dataset({**opt, "type": "RealESRGANDataset"})
    for seed in range(3):
        ours, theirs = (load_sample(dataset, SampleKey(seed, seed)) for dataset in (by_opt, by_options))
        assert torch.equal(ours["lq"], theirs["lq"]) and ours["lq"].shape == (3, 16, 16)


def test_pairs_of_a_list(mcadkd, tmp_path):
    train = mcadkd["datasets"]["train"]
    hr, lr = Path(train["dataroot_gt"]), Path(train["dataroot_lq"])
    (tmp_path / "pairs.txt").write_text(
        "".join(f"{path.name}, {path.stem}x2.png\n" for path in sorted(hr.iterdir())[:3])
    )
    opt = {"dataroot_gt": str(hr), "dataroot_lq": str(lr), "meta_info": str(tmp_path / "pairs.txt"), "scale": 2}
    listed = RealESRGANPairedDataset({**opt, "gt_size": 16, "phase": "train", "io_backend": {"type": "disk"}})
    plain = build_dataset({**train, "scale": 2, "phase": "train", "gt_size": 16, "type": "PairedImageDataset"})
    assert len(listed) == 3
    for index in range(3):
        ours, theirs = (load_sample(dataset, SampleKey(index, 4)) for dataset in (listed, plain))
        assert torch.equal(ours["lq"], theirs["lq"]) and torch.equal(ours["gt"], theirs["gt"])
    (tmp_path / "pairs.txt").write_text(f"{sorted(hr.iterdir())[0].name}, ../other.png\n")
    with pytest.raises(DataError, match=r"names \.\./other\.png, which is not below"):
        RealESRGANPairedDataset({**opt, "gt_size": 16, "io_backend": {"type": "disk"}})

"""Loading options: what is accepted, what is refused and with which line, and what a run gets."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from basicsr.config.load import dict2str, load_options, parse_arguments, resolved_yaml
from basicsr.config.schema import FrozenMapping, thaw
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY

FILES = Path(__file__).resolve().parent / "files"
EXAMPLE = FILES / "example_mcadkd.yml"


@pytest.fixture
def options() -> dict[str, Any]:
    """Small valid options for training a student, as a dict to change."""
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    return {
        "name": "small",
        "model_type": "MCADKD",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {
            "train": {
                "name": "a",
                "type": "PairedImageDataset",
                "dataroot_gt": "gt",
                "dataroot_lq": "lq",
                "gt_size": 96,
                "batch_size_per_gpu": 2,
            },
            "val": {"name": "Set5", "type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"},
        },
        "network_g": network,
        "network_t": dict(network),
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3},
        "path": {"pretrain_network_t": "t.pth"},
        "train": {
            "total_iter": 10,
            "optim_g": {"type": "Adam", "lr": 1e-4},
            "optim_d": {"type": "Adam", "lr": 1e-4},
            "scheduler": {"type": "MultiStepLR", "milestones": [5]},
            "pixel_opt": {"type": "L1Loss"},
            "resp_kd_opt": {"type": "L1Loss", "loss_weight": 0.5},
            "contrastive_opt": {"type": "hybrid", "patch_size": 48},
            "adversarial_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.01},
        },
        "val": {"val_freq": 5, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
    }


def load(options: Any, training: bool = True, **arguments: Any):
    return load_options(options, training=training, **{"paths": False, **arguments})


def mistakes(options: Any, training: bool = True, **arguments: Any) -> list[str]:
    """The lines of the error without the first, which counts them."""
    with pytest.raises(OptionsError) as caught:
        load(options, training, **arguments)
    first, *lines = str(caught.value).split("\n")
    assert first.endswith("one mistake" if len(lines) == 1 else f"{len(lines)} mistakes")
    return lines


def changed(options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the value at `a.b.c` set; the value `...` removes the key."""
    result = copy.deepcopy(options)
    section = result
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return result


def test_example_of_the_readme_means_what_it_says():
    options = load(EXAMPLE)
    assert (options.name, options.model_type, options.scale, options.num_gpu) == (
        "MCADKD_EDSR_x2",
        "KDModel",
        2,
        "auto",
    )
    train = options.datasets["train"]
    assert (train.phase, train.scale, train.batch_size_per_gpu, train.num_worker_per_gpu) == ("train", 2, 32, 8)
    assert train.arguments["gt_size"] == 96
    assert train.arguments["io_backend"] == {"type": "disk"}
    assert options.network_g["rgb_mean"] == (0.4488, 0.4371, 0.4040)
    assert options.val.val_freq == options.logger.save_checkpoint_freq == 5000
    assert options.train.optim_g["lr"] == 1e-4
    assert options.train.loss_blocks == {"pix": {"type": "L1Loss", "loss_weight": 3.0, "reduction": "mean"}}
    assert options.train.distill["response"] == {
        "type": "ResponseDistillation",
        "criterion": FrozenMapping({"type": "L1Loss", "loss_weight": 0.5, "reduction": "mean"}),
    }
    contrastive = options.train.distill["contrastive"]
    assert (contrastive["type"], contrastive["mode"], contrastive["loss_weight"]) == (
        "HybridContrastive",
        "hybrid",
        0.05,
    )
    assert options.train.adversarial_opt["loss_weight"] == 0.01


@pytest.mark.parametrize("file", sorted(FILES.glob("*.yml")), ids=lambda file: file.stem)
def test_resolved_options_load_to_equal_options(file, tmp_path):
    options = load(file)
    copied = tmp_path / "resolved.yml"
    copied.write_text(resolved_yaml(options))
    assert load(copied) == options


def test_basicsr_files_keep_their_meaning():
    options = load(FILES / "train_MSRGAN_x4.yml")
    assert options.model_type == "SRModel"
    assert options.train.adversarial_opt == {
        "type": "GANLoss",
        "gan_type": "vanilla",
        "real_label_val": 1.0,
        "fake_label_val": 0.0,
        "loss_weight": 5e-3,
    }
    assert set(options.train.loss_blocks) == {"pix", "percep"}
    assert [dataset.name for dataset in options.datasets_of("val").values()] == ["Set5", "Set14"]
    assert load(FILES / "train_MSRResNet_x4.yml").train.scheduler["periods"] == (250000,) * 4


def test_options_and_all_they_hold_are_frozen(options):
    loaded = load(options)
    with pytest.raises(ValidationError):
        loaded.scale = 3
    with pytest.raises(ValidationError):
        loaded.train.total_iter = 3
    with pytest.raises(TypeError):
        loaded.network_g["num_feat"] = 3
    with pytest.raises(TypeError):
        loaded.datasets["val_2"] = loaded.datasets["val"]
    with pytest.raises(AttributeError):
        loaded.train.scheduler["milestones"].append(7)


def test_options_survive_pickling_and_hold_no_part_of_the_input(options):
    loaded = load(options)
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    before = copy.deepcopy(thaw(loaded))
    options["network_g"]["num_feat"] = 99
    options["train"]["scheduler"]["milestones"].append(9)
    assert thaw(loaded) == before


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("nmae", "x", "nmae: unknown key (did you mean 'name'?); allowed: name, model_type"),
        ("name", ..., "name: is required"),
        ("name", "a/b", "name: must be usable as a folder's name"),
        ("name", "..", "name: must be usable as a folder's name"),
        ("name", "", "name: must be usable as a folder's name"),
        ("name", "a\n", "name: must be usable as a folder's name"),
        ("name", 5, "name: input should be a valid string, got 5"),
        ("scale", "2", "scale: input should be a valid integer, got '2'"),
        ("scale", 0, "scale: input should be greater than or equal to 1, got 0"),
        ("scale", ..., "scale: is required"),
        ("scale", True, "scale: input should be a valid integer, got True"),
        ("model_type", "MCADK", "model_type: no model is called 'MCADK' (did you mean 'MCADKD'?)"),
        ("model_type", "ESRGANModel", "model_type: no model is called 'ESRGANModel'"),
        ("num_gpu", "all", "num_gpu: input should be a valid integer or input should be 'auto', got 'all'"),
        ("num_gpu", -1, "num_gpu: input should be greater than or equal to 0"),
        ("amp", "fp32", "amp: input should be 'auto', 'none', 'bf16' or 'fp16', got 'fp32'"),
        ("channels_last", "yes", "channels_last: input should be a valid boolean, got 'yes'; write true or false"),
        ("manual_seed", 1.5, "manual_seed: input should be a valid integer, got 1.5"),
        ("is_train", False, "is_train: is set by the command; train.py makes it true"),
        ("root", "x", "root: unknown key"),
        ("datasets.val.nmae", "x", "datasets.val.nmae: unknown key (did you mean 'name'?)"),
        ("datasets.val.batch_size_per_gp", 3, "unknown key (did you mean 'batch_size_per_gpu'?)"),
        ("datasets.val.dataroot_hr", "x", "datasets.val.dataroot_hr: unknown key (did you mean 'dataroot_"),
        ("datasets.val.arguments", {"color": "y"}, "datasets.val.arguments: unknown key"),
        ("datasets.val.dataroot_gt", ..., "datasets.val.dataroot_gt: is required"),
        ("datasets.val.filename_tmpl", 3, "datasets.val.filename_tmpl: input should be a valid string, got 3"),
        ("datasets.val.type", "PairedDataset", "no dataset is called 'PairedDataset' (did you mean 'PairedIma"),
        ("datasets.val.io_backend", {"type": "dsk"},
         "no storage is called 'dsk' (did you mean 'disk'?); there are: bands, disk, lmdb, webdataset"),
        ("datasets.val.io_backend", {"type": "lmdb", "a": 1}, "io_backend.a: unknown key; allowed: readahead"),
        ("datasets.val.type", ..., "datasets.val.type: is required, as a dataset needs a type; there are: "),
        ("datasets.val.scale", 3, "datasets.val.scale: is filled in: 2 here, got 3"),
        ("datasets.val.phase", "train", "datasets.val.phase: is filled in: 'val' here, got 'train'"),
        ("datasets.train", ..., "datasets.train: is required for training"),
        ("datasets.train.gt_size", 97, "datasets.train.gt_size: must be a multiple of scale 2, got 97; take 96"),
        ("datasets.train.num_worker_per_gpu", -1, "datasets.train.num_worker_per_gpu: input should be greater"),
        ("datasets.valid", {}, "datasets.valid: unknown key (did you mean 'val'?); allowed: train, train_2"),
        ("datasets.val_2", {"name": "Set5", "type": "PairedImageDataset"}, "'Set5' is also the name of datasets.val"),
        ("datasets.test", {"name": "t", "type": "SingleImageDataset"}, "datasets.test: is not used in training"),
        ("datasets.val", 3, "datasets.val: input should be a mapping, got 3"),
        ("network_g", ..., "network_g: is required"),
        ("network_g", 3, "network_g: must be a mapping such as {type: ...}"),
        ("network_g.type", "EDSRR", "network_g.type: no network is called 'EDSRR' (did you mean 'EDSR'?); there are: "),
        ("network_g.type", 7, "network_g.type: must be the name of a network, got 7; there are: "),
        ("network_g.num_feats", 7, "network_g.num_feats: unknown key (did you mean 'num_feat'?)"),
        ("network_g.num_feat", "64", "network_g.num_feat: input should be a valid integer, got '64'"),
        ("network_g.num_in_ch", ..., "network_g.num_in_ch: is required"),
        ("network_g.upscale", 4, "network_g.upscale: is 4, but scale is 2; make them equal"),
        ("network_t.upscale", ..., "network_t.upscale: is by default 4, but scale is 2; make them equal"),
        ("network_t", ..., "network_t: is required by model_type KDModel (MCADKD): the teacher"),
        ("network_d", ..., "network_d: is required by train.adversarial_opt: the discriminator"),
        ("path.pretrain_network_t", None, "path.pretrain_network_t: is required: an untrained teacher teaches noise"),
        ("path.pretrained_network_g", "x", "unknown key (did you mean 'pretrain_network_g'?)"),
        ("path.strict_load_g", "off", "input should be a valid boolean, got 'off'; write true or false"),
        ("path.ignore_resume_networks", ["network_x"], "path.ignore_resume_networks"),
        ("train", ..., "train: is required"),
        ("train.total_iter", 0, "train.total_iter: input should be greater than or equal to 1"),
        ("train.total_iter", 2.5, "train.total_iter: input should be a valid integer"),
        ("train.total_iter", "none", "got 'none'; write ~ for nothing"),
        ("train.total_iter", ..., "train.total_iter: is required"),
        ("train.ema_decay", 1, "train.ema_decay: input should be less than 1"),
        ("train.ema_decay", float("nan"), "train.ema_decay: input should be a finite number"),
        ("train.warmup_iter", -2, "train.warmup_iter: input should be greater than or equal to -1"),
        ("train.grad_clip", 0, "train.grad_clip: input should be greater than 0"),
        ("train.use_grad_clip", True, "train.use_grad_clip: does not say how large a gradient may be; write grad_clip"),
        ("train.ldl_opt", {"type": "L1Loss"}, "train.ldl_opt: BasicSR's LDL artifact loss is not part"),
        ("train.fix_flow", 5000, "train.fix_flow: belongs to BasicSR's video models"),
        ("high_order_degradation", True, "high_order_degradation: belongs to Real-ESRGAN's models and data sets"),
        ("train.optim_g", ..., "train.optim_g: is required"),
        ("train.optim_g.type", "Adamm", "no optimizer is called 'Adamm' (did you mean 'Adam'?)"),
        ("train.optim_g.lr", -1, "train.optim_g.lr: input should be greater than 0, got -1"),
        ("train.optim_g.lr", "1e-4", "train.optim_g.lr: input should be"),
        ("train.optim_g.learning_rate", 1, "train.optim_g.learning_rate: unknown key"),
        ("train.optim_g.params", [], "train.optim_g.params: unknown key"),
        ("train.optim_g.betas", [0.9], "train.optim_g.betas"),
        ("train.optim_d", ..., "train.optim_d: is required by train.adversarial_opt"),
        ("train.scheduler.type", "MultiStep", "no scheduler is called 'MultiStep' (did you mean 'MultiStepLR'?)"),
        ("train.scheduler.gama", 0.5, "train.scheduler.gama: unknown key (did you mean 'gamma'?)"),
        ("train.scheduler.milestones", ..., "train.scheduler.milestones: is required"),
        ("train.scheduler", {"type": "CosineAnnealingRestartLR", "periods": [5, 4], "restart_weights": [1, 1]},
         "train.scheduler.periods: end after 9 iterations, before total_iter 10"),
        ("train.scheduler", {"type": "CosineAnnealingRestartLR", "periods": [5, 5]},
         "train.scheduler.periods: must have as many entries as restart_weights, at least one, got 2 and 1"),
        ("train.pixel_opt.type", "L2Loss", "train.pixel_opt.type: no loss is called 'L2Loss'"),
        ("train.pixel_opt", {"typ": "L1Loss"}, "train.pixel_opt.typ: unknown key (did you mean 'type'?)"),
        ("train.pixel_opt.reduction", "men", "train.pixel_opt.reduction"),
        ("train.contrastive_opt.type", "hybird", "train.contrastive_opt.type: input should be 'image', 'patch' or"),
        ("train.contrastive_opt.mode", "hybrid", "train.contrastive_opt.mode: unknown key; write it as type"),
        ("train.contrastive_opt.temperature", 0.1, "train.contrastive_opt.temperature: unknown key"),
        ("train.contrastive_opt.patch_size", 128,
         "train.contrastive_opt.patch_size: 128 is larger than the smallest gt_size 96"),
        ("train.distill", {"response": {"type": "ResponseDistillation"}},
         "train.resp_kd_opt: is an older name of distill.response, which stands at options; keep one"),
        ("train.distill", {"pix": {"type": "ResponseDistillation"}}, "is the name of a built-in term"),
        (
            "train.distill",
            {"response": {"type": "HybridContrastive"}},
            "train.distill.response: is the name of a built-in term, a ResponseDistillation; choose another",
        ),
        ("train.distill", {"a.b": {"type": "ResponseDistillation"}}, "cannot be a term's name"),
        ("train.distill", {"keys": {"type": "ResponseDistillation"}}, "cannot be a term's name"),
        ("train.distill", {"more": {"type": "Respons"}}, "train.distill.more.type: no distillation method is called"),
        ("train.distill", {"more": {"type": "ResponseDistillation", "criterion": {"type": "L3"}}},
         "train.distill.more.criterion.type: no loss is called 'L3'"),
        ("train.gan_opt", {"type": "GANLoss"}, "train.gan_opt: is an older name of adversarial_opt"),
        ("discriminator", {"type": "UNetDiscriminatorSN"}, "discriminator: is an older name of network_d"),
        ("val.metrics", ..., "val.metrics: is required, as there is datasets.val: what to measure"),
        ("val.val_freq", 0, "val.val_freq: input should be greater than or equal to 1"),
        ("val.tile", 8, "val.tile: input should be greater than or equal to 16, got 8"),
        (
            "report.regions",
            [{"dataset": "Set5", "image": "bird", "x": 0, "y": 0, "sizes": 4}],
            "report.regions[0].sizes: unknown key (did you mean 'size'?); allowed: dataset, image, x, y, size",
        ),
        ("val.metrics.psnr.type", "psnr", "val.metrics.psnr.type: no metric is called 'psnr'"),
        ("val.metrics.psnr.crop", 3, "val.metrics.psnr.crop: unknown key"),
        ("val.metrics.psnr.better", "more", "val.metrics.psnr.better: input should be 'higher' or 'lower', got 'more'"),
        ("val.best", {"dataset": "Set6", "metric": "psnr"}, "no validation dataset is named 'Set6'; there are: Set5"),
        ("val.best", {"dataset": "Set5", "metric": "lpips"}, "no metric is named 'lpips'; there are: psnr"),
        ("logger.wandb", {"projekt": "x"}, "logger.wandb.projekt: unknown key"),
        ("logger.keep_checkpoints", 1, "logger.keep_checkpoints: input should be greater than or equal to 2"),
        ("logger.print_frq", 1, "logger.print_frq: unknown key (did you mean 'print_freq'?)"),
        ("dist_params.backend", "mpi", "dist_params.backend: input should be 'nccl' or 'gloo', got 'mpi'"),
        ("dist_params.port", 70000, "dist_params.port: input should be less than or equal to 65535"),
    ],
)  # fmt: skip
def test_each_mistake_is_refused_with_its_key_and_what_is_allowed(options, key, value, expected):
    assert any(expected in line for line in mistakes(changed(options, key, value)))


def test_all_mistakes_are_told_at_once(options):
    options["scale"] = "two"
    options["network_g"]["num_feats"] = 3
    options["train"]["optim_g"]["lr"] = -1
    options["val"]["self_ensemble"] = "yes"
    options["datasets"]["val"]["typo"] = 1
    keys = [line.split(": ")[1] for line in mistakes(options)]
    expected = ["scale", "network_g.num_feats", "train.optim_g.lr", "val.self_ensemble", "datasets.val.typo"]
    assert sorted(keys) == sorted(expected)


def test_a_mistake_of_type_does_not_hide_conflicts_elsewhere(options):
    options["logger"] = {"print_freq": "often"}
    options["network_t"]["upscale"] = 3
    assert [line.split(": ")[1] for line in mistakes(options)] == ["logger.print_freq", "network_t.upscale"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.adversarial_opt", ...),
        ("train.distill", {"more": {"type": "ResponseDistillation"}}),
        ("train.use_grad_clip", False),
        ("train.scheduler", None),
        ("train.scheduler", {"type": "TrueCosineAnnealingLR", "T_max": 10, "eta_min": 1e-7}),
        ("train.optim_g", {"type": "AdamW", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]}),
        ("train.contrastive_opt.num_negatives", None),
        ("datasets.val", None),
        ("datasets.train.use_shuffle", True),
        ("datasets.train.phase", "train"),
        ("logger.wandb", {"project": None, "resume_id": None}),
        ("val.self_ensemble", True),
        ("val.best", {"dataset": "Set5", "metric": "psnr"}),
        ("is_train", True),
        ("val.metrics.psnr.better", "higher"),
    ],
)
def test_variations_are_accepted(options, key, value):
    load(changed(options, key, value))


def test_datasets_written_for_basicsr_take_their_keys_unchecked(options, monkeypatch):
    class OldDataset:
        def __init__(self, opt):
            self.opt = opt

    monkeypatch.setitem(DATASET_REGISTRY._members, "OldDataset", OldDataset)
    options["datasets"]["train"] = {"type": "OldDataset", "name": "a", "anything": [1, {"b": 2}], "gt_size": 96}
    train = load(options).datasets["train"]
    assert train.arguments == {"anything": (1, FrozenMapping({"b": 2})), "gt_size": 96}


def test_random_teacher_is_allowed_only_explicitly(options):
    options["path"] = {"allow_random_teacher": True}
    assert load(options).path.pretrain_network_t is None


def test_older_names_mean_the_newer_ones(options):
    options["discriminator"] = options.pop("network_d")
    options["train"]["gan_opt"] = options["train"].pop("adversarial_opt")
    loaded = load(options)
    assert loaded.network_d["type"] == "UNetDiscriminatorSN"
    assert loaded.train.adversarial_opt["gan_type"] == "vanilla"


def test_top_level_crop_border_serves_metrics_that_set_none(options):
    options["crop_border"] = 4
    options["val"]["metrics"] = {
        "own": {"type": "calculate_psnr", "crop_border": 1},
        "given": {"type": "calculate_ssim"},
    }
    metrics = load(options).val.metrics
    assert (metrics["own"]["crop_border"], metrics["given"]["crop_border"]) == (1, 4)


@pytest.mark.parametrize(
    ("scale", "top_level", "expected"), [(2, ..., 2), (4, ..., 4), (1, ..., 0), (3, None, 3), (3, 0, 0), (1, 2, 2)]
)
def test_crop_border_is_the_scale_and_nothing_at_scale_1(test_options, scale, top_level, expected):
    options = changed(test_options, "scale", scale)
    options = changed(options, "network_g.upscale", scale)
    if top_level is not ...:
        options["crop_border"] = top_level
    options["val"] = {"metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim_pt"}}}
    metrics = load(options, training=False).val.metrics
    assert [metric["crop_border"] for metric in metrics.values()] == [expected] * 2
    assert all("test_y_channel" not in metric for metric in metrics.values()), "the functions compare RGB by default"


def test_a_metric_without_a_border_gets_none(test_options, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY._members, "calculate_own", lambda img, img2: 0.0)
    test_options["val"] = {"metrics": {"own": {"type": "calculate_own"}}}
    assert dict(load(test_options, training=False).val.metrics["own"]) == {"type": "calculate_own"}


def test_srgan_model_needs_its_adversarial_loss():
    lines = mistakes(FILES / "train_MSRGAN_x4.yml", overrides=["train:gan_opt=~"])
    assert any("adversarial_opt: model_type SRGANModel needs it" in line for line in lines)


@pytest.mark.parametrize("key", ["resp_kd_opt", "contrastive_opt"])
def test_distillation_without_a_teacher_is_refused(options, key):
    options["model_type"] = "SRModel"
    lines = mistakes(options)
    assert any(f"train.{key}: needs a teacher: set model_type to KDModel" in line for line in lines)
    assert any("network_t: only model_type KDModel (MCADKD) has a teacher" in line for line in lines)


def test_a_kd_model_needs_something_to_distil(options):
    del options["train"]["resp_kd_opt"], options["train"]["contrastive_opt"]
    assert any("train: names nothing to distil" in line for line in mistakes(options))


def test_training_needs_a_loss(options):
    options["model_type"] = "SRModel"
    for key in ("network_t", "network_d"):
        del options[key]
    for key in ("pixel_opt", "resp_kd_opt", "contrastive_opt", "adversarial_opt"):
        del options["train"][key]
    assert mistakes(options) == ["options: train: has no loss: give pixel_opt, perceptual_opt or another"]


@pytest.mark.parametrize("scale", [2.0, "x2", True, 65, -1, []])
def test_a_wrong_scale_is_one_mistake_though_borders_follow_it(options, scale):
    options["scale"] = scale
    del options["val"]["metrics"]["psnr"]["crop_border"]
    options["network_g"] = {"type": "SwinIR"}
    assert not [line for line in mistakes(options) if "crop_border" in line]


def test_an_order_of_axes_that_there_is_not_is_refused(options):
    options["val"]["metrics"]["psnr"]["input_order"] = "XYZ"
    (line,) = mistakes(options)
    assert "val.metrics.psnr.input_order: input should be 'HWC' or 'CHW', got 'XYZ'" in line


def test_losses_that_all_weigh_nothing_are_refused(options):
    for key in ("pixel_opt", "resp_kd_opt", "contrastive_opt", "adversarial_opt"):
        options["train"][key]["loss_weight"] = 0
    (line,) = mistakes(options)
    assert line.endswith("train: has only losses of loss_weight 0, from which nothing is learned: give one a weight")
    options["train"]["resp_kd_opt"]["loss_weight"] = 1e-3
    load(options)


@pytest.fixture
def test_options(options) -> dict[str, Any]:
    """Small valid options for testing."""
    return {
        "name": "t",
        "scale": 2,
        "datasets": {"test_1": options["datasets"]["val"]},
        "network_g": options["network_g"],
        "path": {"pretrain_network_g": "g.pth"},
        "val": options["val"],
    }


def test_any_number_of_networks_can_be_tested(test_options, options):
    test_options["path"] = {}
    test_options["networks"] = {
        "bicubic": {"type": "bicubic"},
        "student": {"path": "s.pth", "param_key": "params_ema"},
        "other one": {"path": "o.pth", "network": {**options["network_g"], "num_feat": 9}, "strict": False},
    }
    rows = load(test_options, training=False).networks
    assert list(rows) == ["bicubic", "student", "other one"]
    assert (rows["student"].network, rows["student"].param_key, rows["student"].strict) == (None, "params_ema", True)
    assert rows["other one"].network["num_feat"] == 9


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("networks", {"a": {}}, "networks.a.path: is required: the file with the network's weights"),
        ("networks", {"a": {"type": "bicubic", "path": "x"}}, "networks.a.path: means nothing to a bicubic row"),
        ("networks", {"a": {"type": "bilinear"}}, "networks.a.type: input should be 'bicubic', got 'bilinear'"),
        ("networks", {"a": {"path": "x", "netwrok": {}}}, "networks.a.netwrok: unknown key (did you mean 'network'?)"),
        ("networks", {"../a": {"path": "x"}}, "networks.../a: names a row and a folder"),
        (
            "networks",
            {"a": {"path": "x", "network": {"type": "EDSR", "upscale": 3}}},
            "networks.a.network.upscale: is 3",
        ),
        ("network_g", ..., "network_g: is required for testing (or networks: any number of them)"),
        ("path.pretrain_network_g", ..., "path.pretrain_network_g: is required for testing"),
        ("datasets", ..., "datasets: is required for testing: test, test_1, ..."),
        ("is_train", True, "is_train: is set by the command; test.py makes it false"),
    ],
)
def test_each_mistake_in_a_test_file_is_refused(test_options, key, value, expected):
    assert any(expected in line for line in mistakes(changed(test_options, key, value), training=False))


def test_a_training_file_can_be_tested(options):
    options["path"]["pretrain_network_g"] = "g.pth"
    assert list(load(options, training=False).datasets_of("val", "test")) == ["val"]


def test_missing_files_are_told_together_with_other_mistakes(options, tmp_path):
    (tmp_path / "gt").mkdir()
    options["datasets"]["train"].update(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq"))
    options["datasets"]["val"].update(dataroot_gt=[str(tmp_path / "gt"), str(tmp_path / "hr")], dataroot_lq="none")
    del options["datasets"]["val"]
    options["path"] = {"pretrain_network_t": str(tmp_path / "t.pth"), "pretrain_network_g": "none"}
    options["network_g"]["num_feats"] = 1
    lines = mistakes(options, paths=True)
    there = f"{tmp_path} is there, the rest is not"
    assert lines == [
        "options: network_g.num_feats: " + lines[0].split(": ", 2)[2],
        f"options: datasets.train.dataroot_lq: there is no folder {tmp_path / 'lq'}; {there}",
        "options: path.pretrain_network_g: there is no file none; write ~ for none",
        f"options: path.pretrain_network_t: there is no file {tmp_path / 't.pth'}; {there}",
    ]


def test_tilde_means_the_home_folder(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("gt", "lq"):
        (tmp_path / name).mkdir()
        for dataset in options["datasets"].values():
            dataset[f"dataroot_{name}"] = f"~/{name}"
    (tmp_path / "t.pth").touch()
    options["path"]["pretrain_network_t"] = "~/t.pth"
    loaded = load(options, paths=True)
    assert loaded.path.pretrain_network_t == str(tmp_path / "t.pth")
    assert loaded.datasets["val"].arguments["dataroot_gt"] == str(tmp_path / "gt")


def test_mistakes_name_file_and_line(tmp_path):
    text = (
        EXAMPLE.read_text().replace("  num_block: 32", "  num_blocks: 32", 1).replace("gt_size: 96", "gt_size: no", 1)
    )
    file = tmp_path / "options.yml"
    file.write_text(text)
    lines = text.splitlines()
    expected = [
        f"{file}:{number}: {key}: "
        for number, key in (
            (lines.index("    gt_size: no") + 1, "datasets.train.gt_size"),
            (lines.index("  num_blocks: 32") + 1, "network_g.num_blocks"),
        )
    ]
    found = mistakes(file)
    assert [line.startswith(start) for line, start in zip(found, expected, strict=True)] == [True, True]


def test_mistakes_in_a_base_name_the_base_and_its_line(tmp_path):
    (tmp_path / "net.yml").write_text("type: EDSR\nnum_in_ch: 3\nnum_out_ch: 3\nnum_feats: 64\n")
    file = tmp_path / "options.yml"
    file.write_text("network_g: {_base_: net.yml, upscale: 2}\nname: x\nscale: 2\n")
    lines = mistakes(file, training=False)
    assert any(line.startswith(f"{tmp_path / 'net.yml'}:4: network_g.num_feats: unknown key") for line in lines)


def test_reading_problems_and_type_mistakes_are_told_together(tmp_path):
    file = tmp_path / "options.yml"
    file.write_text(EXAMPLE.read_text().replace("manual_seed: 0", "manual_seed: 010\nnum_gpu: 0"))
    lines = mistakes(file)
    assert [line.split(": ")[1] for line in lines] == ["manual_seed", "num_gpu"]
    assert "leading zero" in lines[0] and "is given twice" in lines[1]


def test_overrides_are_checked_like_the_file():
    loaded = load(EXAMPLE, overrides=["train:total_iter=1e3", "network_g:num_feat=16", "train:ema_decay=0.9"])
    assert (loaded.train.total_iter, loaded.network_g["num_feat"], loaded.train.ema_decay) == (1000, 16, 0.9)
    assert mistakes(EXAMPLE, overrides=["train:total_itr=3", "scale=two"]) == [
        "--force_yml: " + line
        for line in (
            "scale: input should be a valid integer, got 'two'",
            "train.total_itr: unknown key (did you mean 'total_iter'?); allowed: "
            + ", ".join(type(load(EXAMPLE).train).model_fields),
        )
    ]


def test_debug_shortens_the_intervals_and_marks_the_name():
    loaded = load(EXAMPLE, debug=True)
    assert loaded.name == "debug_MCADKD_EDSR_x2"
    assert (loaded.val.val_freq, loaded.logger.print_freq, loaded.logger.save_checkpoint_freq) == (8, 1, 8)
    assert load(EXAMPLE, debug=True, overrides=["name=debug_x"]).name == "debug_x"


def test_debug_shortens_intervals_that_the_file_leaves_out(options):
    del options["datasets"]["val"], options["val"]
    loaded = load(options, debug=True)
    assert (loaded.val.val_freq, loaded.logger.print_freq, loaded.logger.save_checkpoint_freq) == (8, 1, 8)


def test_debug_only_marks_the_name_of_a_test(test_options):
    loaded = load(test_options, training=False, debug=True)
    assert (loaded.name, loaded.logger.print_freq) == ("debug_t", 100)


def test_debug_gives_equal_options_when_its_copy_is_loaded(tmp_path):
    loaded = load(EXAMPLE, debug=True)
    (tmp_path / "copy.yml").write_text(resolved_yaml(loaded))
    assert load(tmp_path / "copy.yml") == loaded


def test_folders_follow_root_and_name(options, tmp_path):
    loaded = load(options, root=tmp_path)
    assert loaded.models_folder == tmp_path / "experiments" / "small" / "models"
    assert loaded.training_states_folder == tmp_path / "experiments" / "small" / "training_states"
    assert loaded.visualization_folder == tmp_path / "experiments" / "small" / "visualization"
    assert loaded.tensorboard_folder == tmp_path / "tb_logger" / "small"
    options["path"]["experiments_root"] = str(tmp_path / "elsewhere")
    assert load(options, root=tmp_path).experiment_folder == tmp_path / "elsewhere" / "small"


def test_results_folder_is_for_tests(test_options, tmp_path):
    loaded = load(test_options, training=False, root=tmp_path)
    assert loaded.results_folder == tmp_path / "results" / "t"
    assert loaded.visualization_folder == tmp_path / "results" / "t" / "visualization"


def test_command_line_is_basicsrs():
    arguments = parse_arguments(
        ["-opt", "a.yml", "--launcher", "pytorch", "--auto_resume", "--debug", "--local_rank", "1",
         "--force_yml", "a=1", "b:c=2"],
        training=True,
    )  # fmt: skip
    assert (arguments.opt, arguments.launcher, arguments.auto_resume, arguments.debug) == (
        "a.yml",
        "pytorch",
        True,
        True,
    )
    assert arguments.force_yml == ["a=1", "b:c=2"]
    assert parse_arguments(["-opt", "a.yml", "--local-rank=3"], training=False).force_yml == []
    twice = parse_arguments(["--force_yml", "a=1", "-opt", "a.yml", "--force_yml", "b=2", "c=3"], training=True)
    assert twice.force_yml == ["a=1", "b=2", "c=3"]


@pytest.mark.parametrize(
    "argv", [[], ["-opt", "a.yml", "--launcher", "mpi"], ["-opt", "a.yml", "--typo"], ["-opt", "a.yml", "--debu"]]
)
def test_wrong_command_lines_exit_with_code_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv, training=True)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_dict2str_indents_inner_mappings():
    assert dict2str({"a": 1, "b": {"c": 2}}) == "\n  a: 1\n  b:[\n    c: 2\n  ]\n"

"""Training with fake quantisation in real runs: its start, its ranges, what it saves, and how it goes on."""

from __future__ import annotations

import math
import re

import cv2
import numpy as np
import pytest
import torch
from support.training import changed, checkpoint_of, differences

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.data.calibration_images import calibration_images
from basicsr.engine.quantized_training import check_start
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.network import quantize_network
from basicsr.quantization.records import is_range
from basicsr.test import test_pipeline as run_test
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError, NonFiniteError, OptionsError
from basicsr.weights.spandrel_networks import SpandrelNetwork

SELF = {"type": "SelfDistillation", "criterion": {"type": "L1Loss", "loss_weight": 2.0}, "feature_weight": 0.01}


@pytest.fixture
def float_file(mcadkd, tmp_path):
    """A file with the student's float weights."""
    torch.manual_seed(11)
    network = build_network(mcadkd["network_g"])
    file = tmp_path / "float.pth"
    torch.save({"params": network.state_dict()}, file)
    return file


@pytest.fixture
def quantized(mcadkd, float_file):
    """A run of three iterations with its float self and the teacher."""
    return changed(
        mcadkd,
        train__quantize={"images": 5},
        train__distill={"float_self": SELF},
        train__contrastive_opt=None,
        train__adversarial_opt=None,
        train__optim_d=None,
        network_d=None,
        path__pretrain_network_g=str(float_file),
        train__total_iter=3,
        val__val_freq=3,
        logger__save_checkpoint_freq=1,
    )


def run(options, root, **arguments) -> list[dict]:
    """The checkpoints after each iteration."""
    folder = train_pipeline(options, root=root, **arguments).folder
    return [checkpoint_of(folder, iteration) for iteration in range(1, options["train"]["total_iter"] + 1)]


def test_ranges_come_from_whole_lr_images_and_stay_and_the_average_has_them_too(quantized, float_file, tmp_path):
    first, *_, last = run(quantized, tmp_path)
    network = build_network(quantized["network_g"])
    network.load_state_dict(torch.load(float_file, weights_only=True)["params"])
    loaded = load_options(quantized, training=True, root=tmp_path)
    settings = loaded.train.quantize
    quantize_network(network, settings)
    folder = quantized["datasets"]["train"]["dataroot_lq"]
    images = []
    for number in (0, 1, 2, 4, 5):  # five of seven
        image = cv2.imread(f"{folder}/img{number:03d}x2.png")[..., ::-1].astype(np.float32) / 255
        images.append(("", torch.from_numpy(image.copy()).permute(2, 0, 1)))
    calibrate(network, images)
    expected = {name: value for name, value in network.state_dict().items() if is_range(name)}
    assert expected and all(torch.isfinite(value).all() for value in expected.values())
    for content in (first["g"], last["g"]):
        for weights in (content["params"], content["params_ema"]):
            assert differences({name: value for name, value in weights.items() if is_range(name)}, expected) == []
        assert content["quantization"]["settings"]["images"] == 5
        assert set(content["quantization"]["plans"]) == {
            name.split(".input_quantizer")[0] for name in expected if "input_quantizer" in name
        }
    weight = [states["g"]["params"]["body.0.conv1.weight"] for states in (first, last)]
    assert not torch.equal(*weight)


def test_images_for_calibration_are_large_at_most_and_of_all_sets(quantized, tmp_path, image_pairs):
    gt, lq = image_pairs(count=2, size=300, folder="large")
    blocks = load_options(quantized, training=True, root=tmp_path).datasets_of("train")["train"]
    large = blocks.model_copy(
        update={"arguments": {**blocks.arguments, "dataroot_gt": str(gt), "dataroot_lq": str(lq)}}
    )
    found = calibration_images([blocks, large], 3)
    assert [tuple(image.shape) for _, image in found] == [(3, 24, 24)] * 2 + [(3, 256, 256)] * 2
    whole = cv2.imread(str(lq / "img001x2.png"))[..., ::-1].astype(np.float32) / 255
    np.testing.assert_array_equal(found[3][1].permute(1, 2, 0), whole[22:278, 22:278])
    again = calibration_images([blocks, large], 3)
    assert all(torch.equal(first[1], second[1]) for first, second in zip(found, again, strict=True))


def test_it_learns_from_its_float_self_and_the_teacher_and_the_figures_are_those_of_the_quantised_network(
    quantized, tmp_path
):
    _, _, last = run(quantized, tmp_path)
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    text = log.read_text()
    assert "quantised, 7/8 bits, 8 layers, of 8" in text
    assert "calibrated on 5 LR images of the training sets (ranges: mse)" in text
    parts = {name: float(value) for name, value in re.findall(r"(l_\w+): (\S+)", text)}
    assert {"l_pix", "l_resp", "l_self", "l_self_feat"} <= parts.keys() and parts["l_self"] > 0
    assert last["state"]["best"]["val"]["psnr"]["iteration"] == 3


def test_testing_gives_the_figures_of_the_validation(quantized, tmp_path):
    options = changed(quantized, network_t=None, model_type="SRModel", train__resp_kd_opt=None)  # its self is enough
    result = train_pipeline(options, root=tmp_path)
    file = str(result.folder / "models/net_g_latest.pth")
    keys = ("name", "scale", "num_gpu", "model_type", "network_g", "val")
    tested = {key: options[key] for key in keys} | {"datasets": {"test_1": options["datasets"]["val"]}}
    tested["report"] = {"html": False, "plots": False, "speed": False}
    for network in (options["network_g"], {"type": "auto"}):
        path = {"pretrain_network_g": file, "param_key_g": "params_ema"}
        (row,) = run_test({**tested, "network_g": network, "path": path}, root=tmp_path).scales[0].rows
        found = row.evaluations["val"].means()
        assert found["psnr"] == pytest.approx(result.best["val"]["psnr"]["value"], abs=1e-9)
    with pytest.raises(OptionsError, match=r"is quantised already; give its float weights"):
        train_pipeline(changed(options, path={"pretrain_network_g": file}, name="again"), root=tmp_path)
    with pytest.raises(OptionsError, match=r"net_g_latest\.pth is a quantised network; give its float weights"):
        again = changed(options, path={"pretrain_network_g": file}, name="again", train__quantize=None)
        train_pipeline(again, root=tmp_path)


CELLS = {
    "bf16, accumulated, channels_last": {"amp": "bf16", "channels_last": True, "train__accumulate": 2},
    "plain, percentile, frozen": {
        "train__quantize": {"images": 3, "ranges": "percentile", "last": "int16", "weight_bits": 8},
        "train__freeze": ["body.0"],
        "train__param_groups": [{"params": "conv_first", "lr": 1e-4}],
    },
}


@pytest.mark.parametrize("changes", CELLS.values(), ids=CELLS)
def test_a_resumed_run_is_the_same_bit_for_bit_without_its_float_file(quantized, float_file, tmp_path, changes):
    options = changed(quantized, **changes)
    whole = run(options, tmp_path / "whole")
    run(changed(options, train__total_iter=2), tmp_path / "parts")
    resumed = run(options, tmp_path / "parts", auto_resume=True)[-1]
    assert differences(resumed, whole[-1]) == []


def test_changed_settings_are_another_experiment(quantized, tmp_path):
    options = changed(quantized, train__total_iter=1)
    run(options, tmp_path)
    other = changed(options, train__quantize={"images": 5, "weight_bits": 8}, train__total_iter=2)
    with pytest.raises(OptionsError, match=r"train\.quantize\.weight_bits: 7 -> 8"):
        run(other, tmp_path, auto_resume=True)
    with pytest.raises(OptionsError, match=r"train\.quantize\.weight_bits: 7 -> not set"):
        run(changed(options, train__quantize=None, train__total_iter=2), tmp_path, auto_resume=True)
    for key, value in {"activations": "int16", "ranges": "minmax", "layers": {"body.0.*": "float"}}.items():
        other = changed(options, train__quantize={"images": 5, key: value}, train__total_iter=2)
        with pytest.raises(OptionsError, match=rf"train\.quantize\.{key} is .*put it back"):
            run(other, tmp_path, auto_resume=True, allow_config_change=True)
    other = changed(options, train__quantize={"images": 5, "weight_bits": 8}, train__total_iter=2)
    assert run(other, tmp_path, auto_resume=True, allow_config_change=True)[-1]["g"]["quantization"]["settings"] == {
        **load_options(other, training=True, root=tmp_path).train.quantize.to_data()
    }


MIPKD = {"mixture": {"type": "MiPKD", "feature_weight": 1e-3, "autoencoder_weight": 1e-3}}


def test_parts_of_the_student_run_quantised_too(quantized, tmp_path):
    whole = run(changed(quantized, train__distill=MIPKD, train__total_iter=2), tmp_path)
    assert math.isfinite(sum(value.double().sum() for value in whole[-1]["g"]["params"].values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path__pretrain_network_g": None, "path__allow_random_teacher": None, "path__pretrain_network_t": "FLOAT"},
         r"path\.pretrain_network_g is required"),
        ({"train__quantize": {"weight_bits": 6}}, r"train\.quantize\.weight_bits"),
        ({"train__quantize": {"layers": {"bodi": "float"}}}, r"quantize\.layers: 'bodi' matches no"),
        ({"train__quantize": {"activations": "float"}}, "every layer is float"),
        ({"datasets__train__mean": [0.5, 0.5, 0.5]}, r"datasets\.train\.mean: gives other values"),
        ({"train__distill": {"csd": {"type": "SharedCSD", "vgg_weights": "random"}}, "network_t__num_block": 2,
          "train__resp_kd_opt": None}, r"train\.quantize: begins with the student's own weights"),
    ],
)  # fmt: skip
def test_slips_are_one_line_and_nothing_is_written(quantized, float_file, tmp_path, changes, message):
    options = changed(quantized, **changes)
    if options["path"].get("pretrain_network_t") == "FLOAT":
        options = changed(options, path__pretrain_network_t=str(float_file), network_t=dict(quantized["network_g"]))
    with pytest.raises(OptionsError, match=message):
        train_pipeline(options, root=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("**/models"))


def test_a_network_that_no_options_describe_is_refused(quantized):
    class SpandrelsOwn(SpandrelNetwork):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.architecture = "DAT"

    with pytest.raises(OptionsError, match=r"train\.quantize: network_g is DAT of spandrel's"):
        check_start(load_options(quantized, training=True), SpandrelsOwn(), resumed=False)


def test_values_that_are_not_finite_while_calibrating_are_one_line(quantized, float_file, tmp_path):
    weights = torch.load(float_file, weights_only=True)["params"]
    weights["body.1.conv1.weight"] *= 1e38  # finite, and what comes of it not
    torch.save({"params": weights}, float_file)
    with pytest.raises((NonFiniteError, CheckpointError)) as refusal:
        train_pipeline(quantized, root=tmp_path / "runs")
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "runs").glob("**/models"))

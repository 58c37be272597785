"""The mean of several teachers against numpy, on networks of unlike kinds, from files and untrained."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.archs import build_network
from basicsr.config.schema import FrozenMapping
from basicsr.distill.response import ResponseDistillation, SeveralTeachers
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import METHOD_REGISTRY

RCAN = {
    "type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 12, "num_group": 2, "num_block": 1,
    "squeeze_factor": 4, "upscale": 2, "img_range": 1.0,
}  # fmt: skip
SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect", "img_range": 1.0,
}  # fmt: skip
RANDOM = {"network": RCAN, "allow_random": True}


def saved(block: dict, path: Path, seed: int, key: str = "params") -> torch.nn.Module:
    torch.manual_seed(seed)
    network = build_network(block)
    torch.save({key: network.state_dict()}, path)
    return network.eval()


def image_of(network: torch.nn.Module, lq: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return network(lq).double().numpy()


def test_the_target_is_the_weighted_mean(tmp_path):
    rcan = saved(RCAN, tmp_path / "rcan.pth", 1)
    swinir = saved(SWINIR, tmp_path / "swinir.pth", 2, "params_ema")
    block = FrozenMapping(
        {
            "type": "SeveralTeachers",
            "weight": 0.5,
            "teachers": [
                {"network": RCAN, "path": str(tmp_path / "rcan.pth"), "weight": 3},
                {"network": SWINIR, "path": str(tmp_path / "swinir.pth"), "param_key": "params_ema"},
            ],
        }
    )
    model = kd_model({"teachers": METHOD_REGISTRY.build(block)})
    step = batch(size=10)  # no multiple of SwinIR's window
    images = [image_of(network, step.lq) for network in (model.teacher.network, rcan, swinir)]
    target = (0.5 * images[0] + 3 * images[1] + 1 * images[2]) / 4.5
    loss = np.mean(np.abs(image_of(model.network, step.lq) - target))
    assert model(step, 1).parts["l_teachers"].item() == pytest.approx(loss, rel=1e-5)


def test_a_criterion_of_ones_own_and_its_weight():
    torch.manual_seed(3)
    method = SeveralTeachers(teachers=[RANDOM], criterion={"type": "MSELoss", "loss_weight": 5.0})
    model = kd_model({"teachers": method})
    step = batch()
    student, first, second = (
        image_of(network, step.lq) for network in (model.network, model.teacher.network, method.teachers[0].network)
    )
    output = model(step, 1)
    loss = np.mean((student - (first + second) / 2) ** 2)
    assert output.parts["l_teachers"].item() == pytest.approx(loss, rel=1e-5)
    assert output.total.item() == pytest.approx(5 * loss, rel=1e-5)


def test_without_further_teachers_it_is_response_distillation():
    ours, plain = (kd_model({"term": term})(batch(), 1).total for term in (SeveralTeachers(), ResponseDistillation()))
    assert torch.equal(ours, plain)


def test_a_network_left_out_is_recognised_from_its_file(tmp_path):
    network = saved({**SWINIR, "embed_dim": 12}, tmp_path / "unknown.pth", 4)
    for given in ({}, {"network": {"type": "auto"}}):
        method = SeveralTeachers(teachers=[{"path": str(tmp_path / "unknown.pth"), **given}])
        with torch.no_grad():
            assert torch.allclose(method.teachers[0](batch().lq), network(batch().lq), atol=1e-6)


def test_further_teachers_learn_nothing_and_are_in_no_state():
    torch.manual_seed(3)
    method = SeveralTeachers(teachers=[RANDOM, {**RANDOM, "network": SWINIR}])
    model = kd_model({"teachers": method})
    further = [teacher.network for teacher in method.teachers]
    tried_at_start = {"teachers[0].network": further[0], "teachers[1].network": further[1]}
    assert method.further_networks() == tried_at_start
    before = copy.deepcopy([network.state_dict() for network in further])
    model.train()
    model(batch(), 1).total.backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in trained(model).values())
    assert set(trained(model)) == {f"network.{name}" for name in model.network.state_dict()}
    assert method.state_dict() == {} and not any(True for _ in method.parameters())
    for network, state in zip(further, before, strict=True):
        assert not network.training
        assert all(value.grad is None and not value.requires_grad for value in network.parameters())
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_in_half_precision_the_mean_is_nearly_the_same():
    losses = []
    for amp in ("none", "bf16"):
        torch.manual_seed(3)
        losses.append(kd_model({"teachers": SeveralTeachers(teachers=[RANDOM])}, amp=amp)(batch(), 1).total)
    assert losses[1].dtype == torch.float32 and losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)


def test_further_teachers_run_in_the_precision_of_the_teachers():
    torch.manual_seed(3)
    method = SeveralTeachers(teachers=[RANDOM])
    dtypes = []
    layer = method.teachers[0].network.conv_first
    layer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    for precisions in ({"amp": "bf16", "amp_teacher": "none"}, {"amp": "none", "amp_teacher": "bf16"}):
        kd_model({"teachers": method}, **precisions)(batch(), 1)
    assert dtypes == [torch.float32, torch.bfloat16]


def test_the_log_says_what_was_loaded(tmp_path):
    path = tmp_path / "rcan.pth"
    saved(RCAN, path, 1)
    method = SeveralTeachers(teachers=[{"network": RCAN, "path": str(path)}, RANDOM])
    assert method.remarks == [f"SeveralTeachers: teachers[0]: Loaded from {path}"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"netwrok": RCAN},
            r"teachers\[1\]\.netwrok: unknown key \(did you mean 'network'\?\); allowed: network, path",
        ),
        (
            {"network": RCAN},
            r"teachers\[1\]: path is required: an untrained teacher teaches noise \(allow_random: true",
        ),
        ({"allow_random": True}, r"teachers\[1\]: path is required where network is left out or auto"),
        ({**RANDOM, "weight": 0}, r"teachers\[1\]\.weight: input should be greater than 0, got 0"),
        ({**RANDOM, "weight": "2"}, r"teachers\[1\]\.weight: "),
        ({**RANDOM, "network": {**RCAN, "num_fet": 1}}, r"teachers\[1\]\.network\.num_fet.*did you mean 'num_feat'"),
        (
            {**RANDOM, "network": {"type": "RCAM"}},
            r"teachers\[1\]\.network\.type: no network is called 'RCAM' \(did you mean 'RCAN'\?\)",
        ),
    ],
)
def test_mistakes_in_a_teacher_are_named_in_one_line(teacher, message):
    with pytest.raises(OptionsError, match=rf"^SeveralTeachers: {message}") as caught:
        SeveralTeachers(teachers=[RANDOM, teacher])
    assert "\n" not in str(caught.value)


def test_the_own_weight_of_network_t_must_be_positive():
    with pytest.raises(OptionsError, match=r"SeveralTeachers: weight: input should be greater than 0, got -1\.0"):
        SeveralTeachers(teachers=[RANDOM], weight=-1.0)


def test_files_that_do_not_serve_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"SeveralTeachers: teachers\[0\]: .*missing\.pth"):
        SeveralTeachers(teachers=[{"path": str(tmp_path / "missing.pth")}])
    saved(TEACHER, tmp_path / "edsr.pth", 1)
    with pytest.raises(
        CheckpointError, match=r"teachers\[0\]: checkpoint .*edsr\.pth is for another network than this RCAN"
    ):
        SeveralTeachers(teachers=[{"network": RCAN, "path": str(tmp_path / "edsr.pth")}])


def test_a_teacher_for_another_scale_is_told():
    method = SeveralTeachers(teachers=[{**RANDOM, "network": {**STUDENT, "upscale": 4}}])
    with pytest.raises(
        OptionsError, match=r"teachers\[0\] gives \(3, 40, 40\), network_t \(3, 20, 20\): their upscale"
    ):
        kd_model({"teachers": method})(batch(size=10), 1)

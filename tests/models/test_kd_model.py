"""The KD model: what it sums, what it trains, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, Reconstruction, StepContext
from basicsr.distill.contrastive import HybridContrastive
from basicsr.distill.response import ResponseDistillation
from basicsr.models.kd_model import KDModel
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Precision

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}


def model(amp: str = "none", **extra: LossTerm) -> KDModel:
    torch.manual_seed(0)
    terms = {
        "pix": Reconstruction("l_pix", {"type": "L1Loss", "loss_weight": 3.0}),
        "response": ResponseDistillation(criterion={"type": "L1Loss", "loss_weight": 0.5}),
        "contrastive": HybridContrastive(patch_size=8, num_patches=3, embed_dim=8, loss_weight=0.05),
        **extra,
    }
    student, teacher = build_network(EDSR), build_network({**EDSR, "num_feat": 12})
    return KDModel(student, teacher, terms, Precision("cpu", amp), Precision("cpu", amp), 2)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    lq, gt = (torch.rand(2, 3, size, size, generator=generator) for size in (10, 20))
    return Batch(lq=lq, gt=gt, lq_paths=("a", "b"), gt_paths=("a", "b"), seeds=torch.tensor([1, 2]))


def test_total_is_the_papers_sum_with_every_weight_once():
    kd, step = model().train(), batch()
    output = kd(step, 1)
    with torch.no_grad():
        student = kd.network(step.lq).double()
        teacher = kd.teacher(step.lq).double()
    parts = {name: value.item() for name, value in output.parts.items()}
    assert parts["l_pix"] == pytest.approx((student - step.gt.double()).abs().mean().item(), rel=1e-5)
    assert parts["l_resp"] == pytest.approx((student - teacher).abs().mean().item(), rel=1e-5)
    expected = 3.0 * parts["l_pix"] + 0.5 * parts["l_resp"] + 0.05 * (0.3 * parts["l_img"] + 0.7 * parts["l_patch"])
    assert output.total.item() == pytest.approx(expected, rel=1e-6)


def test_student_heads_and_temperature_learn_and_the_teacher_does_not():
    kd = model().train()
    assert not any("teacher" in name for name, _ in kd.named_parameters())
    teacher = kd.teacher.network
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    optimizer = torch.optim.Adam(kd.parameters(), lr=0.1)
    start = {name: parameter.detach().clone() for name, parameter in kd.named_parameters()}
    kd(batch(), 1).total.backward()
    optimizer.step()
    for name, parameter in kd.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_stays_in_eval_whatever_the_model_is_told():
    kd = model().train()
    assert kd.network.training and not kd.teacher.network.training


def test_nothing_of_the_teacher_or_of_the_heads_is_in_the_students_state():
    kd = model()
    assert set(kd.network.state_dict()) == set(build_network(EDSR).state_dict())
    assert all(key.startswith(("network.", "terms.")) for key in kd.state_dict())


def test_bf16_agrees_with_float32_within_its_precision():
    full, half = model().train()(batch(), 1), model("bf16").train()(batch(), 1)
    # bf16 keeps 8 bits, a relative error of 0.4 % in each product; the embeddings' cosines are divided by tau 0.07.
    for name, part in full.parts.items():
        assert half.parts[name].item() == pytest.approx(part.item(), rel=0.03), name
    assert half.sr.dtype == half.total.dtype == torch.float32


class Features(LossTerm):
    """Compares two tapped features by their means."""

    student_taps = ("body.0",)
    teacher_taps = ("body.0", "conv_after_body")
    weights = {"l_feature": 1.0}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Also checks what it is shown."""
        assert set(context.student_features) == {"body.0"}
        assert set(context.teacher_features) == {"body.0", "conv_after_body"}
        assert context.student_features["body.0"].requires_grad
        assert not context.teacher_features["body.0"].requires_grad
        return {
            "l_feature": (context.student_features["body.0"].mean() - context.teacher_features["body.0"].mean()) ** 2
        }


def test_only_declared_features_are_tapped():
    output = model(feature=Features())(batch(), 1)
    assert output.parts["l_feature"].item() > 0
    wrong = Features()
    wrong.teacher_taps = ("body.9",)
    with pytest.raises(OptionsError, match=r"EDSR has no module 'body\.9'"):
        model(feature=wrong)


def test_a_teacher_of_another_scale_is_refused():
    kd = model()
    kd.teacher.network = nn.Sequential(build_network({**EDSR, "upscale": 4}))
    with pytest.raises(OptionsError, match=r"network_t gives \(3, 40, 40\), network_g \(3, 20, 20\)"):
        kd(batch(), 1)


class Owner(LossTerm):
    """Trains the student's weights in its place."""

    replaces_student = True
    weights = {}

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def attach(self, networks) -> None:
        self.seen.append("owner")

    def after_update(self, student, iteration) -> None:
        self.seen.append("owner")

    def student_weights(self) -> dict[str, torch.Tensor]:
        return {}

    def forward(self, context):
        return {}


class Follower(Owner):
    """Looks at what the student has become."""

    replaces_student = False

    def attach(self, networks) -> None:
        self.seen.append("follower")

    def after_update(self, student, iteration) -> None:
        self.seen.append("follower")


class RunsParts(Follower):
    """Would run parts of the student with the weights that it holds."""

    runs_student_parts = True


def test_who_trains_the_students_weights_comes_before_who_follows_them():
    seen: list[str] = []
    kd = model(follower=Follower(seen), owner=Owner(seen))
    kd.after_update(1)
    assert seen == ["owner", "follower"] * 2


def test_terms_that_rule_each_other_out_are_refused():
    with pytest.raises(OptionsError, match="one and two would both train the student's weights in its place"):
        model(one=Owner([]), two=Owner([]))
    with pytest.raises(OptionsError, match="one trains the student's weights in its place, two runs parts of the"):
        model(one=Owner([]), two=RunsParts([]))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(()), "Returns: forward returned a Tensor; it must return parts by name"),
        ({"mine": torch.zeros(())}, r"forward returned a part 'mine'; parts are called l_\.\.\., such as 'l_mine'"),
        ({"l_mine": 0.5}, "'l_mine' is 0.5; a part must be a tensor of no dimensions"),
        ({"l_mine": torch.zeros(2, 3)}, r"'l_mine' has shape \(2, 3\)"),
        ({"l_other": torch.zeros(())}, "forward returned 'l_other', which its weights do not name; there are: l_mine"),
    ],
)
def test_a_term_that_breaks_its_contract_is_told(returned, message):
    class Returns(LossTerm):
        weights = {"l_mine": 1.0}

        def forward(self, context):
            return returned

    with pytest.raises(OptionsError, match=message):
        model(broken=Returns())(batch(), 1)

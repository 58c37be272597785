from __future__ import annotations

import math

import pytest
import torch

from basicsr.losses import CharbonnierLoss, L1Loss, MSELoss, WeightedTVLoss, build_loss, charbonnier_loss, l1_loss
from basicsr.losses.basic_loss import weighted_loss
from basicsr.utils.errors import OptionsError

# errors 1, -2, 0, 3 by row, then by column
PRED = torch.tensor([[[[1.0, 0.0], [2.0, 5.0]]]], dtype=torch.float64)
TARGET = torch.tensor([[[[0.0, 2.0], [2.0, 2.0]]]], dtype=torch.float64)
WEIGHT = torch.tensor([[[[1.0, 0.5], [4.0, 0.0]]]], dtype=torch.float64)


def test_l1_by_hand() -> None:
    assert L1Loss()(PRED, TARGET).item() == 6 / 4
    assert L1Loss(reduction="sum", loss_weight=0.5)(PRED, TARGET).item() == 3
    assert L1Loss(reduction="none")(PRED, TARGET).flatten().tolist() == [1, 2, 0, 3]


def test_mse_by_hand() -> None:
    assert MSELoss()(PRED, TARGET).item() == 14 / 4
    assert MSELoss(reduction="sum", loss_weight=2.0)(PRED, TARGET).item() == 28


def test_charbonnier_by_hand() -> None:
    expected = (math.sqrt(1.25) + math.sqrt(4.25) + 0.5 + math.sqrt(9.25)) / 4
    assert CharbonnierLoss(eps=0.25)(PRED, TARGET).item() == pytest.approx(expected, rel=1e-15)


def test_charbonnier_has_a_gradient_where_images_agree() -> None:
    pred = TARGET.clone().requires_grad_()
    charbonnier_loss(pred, TARGET).backward()
    assert pred.grad is not None
    assert pred.grad.flatten().tolist() == [0, 0, 0, 0]


def test_weighted_mean_divides_by_the_sum_of_weights() -> None:
    assert L1Loss()(PRED, TARGET, weight=WEIGHT).item() == pytest.approx((1 + 1 + 0 + 0) / 5.5, rel=1e-15)
    assert L1Loss(reduction="sum")(PRED, TARGET, weight=WEIGHT).item() == 2
    assert L1Loss(reduction="none")(PRED, TARGET, weight=WEIGHT).flatten().tolist() == [1, 1, 0, 0]


def test_a_grey_weight_counts_for_every_channel_and_image() -> None:
    pred, target = PRED.expand(2, 3, 2, 2), TARGET.expand(2, 3, 2, 2)
    assert l1_loss(pred, target, WEIGHT).item() == pytest.approx(l1_loss(PRED, TARGET, WEIGHT).item(), rel=1e-15)


def test_total_variation_by_hand() -> None:
    # vertical differences 1 and 5, horizontal 1 and 3
    assert WeightedTVLoss(loss_weight=2.0)(PRED).item() == 2 * (3 + 2)
    assert WeightedTVLoss(reduction="sum")(PRED).item() == 10
    # vertical weights 1 and 0.5 (upper pixels), horizontal 1 and 4 (left pixels)
    expected = (1 * 1 + 0.5 * 5) / 1.5 + (1 * 1 + 4 * 3) / 5
    assert WeightedTVLoss()(PRED, weight=WEIGHT).item() == pytest.approx(expected, rel=1e-15)


def test_half_precision_is_summed_in_float32() -> None:
    pred, target = torch.full((1, 1, 64, 64), 1.0).bfloat16(), torch.full((1, 1, 64, 64), 0.75).bfloat16()
    target[..., 0] = 0.5
    assert l1_loss(pred, target).dtype == torch.float32
    assert l1_loss(pred, target).item() == pytest.approx((63 * 0.25 + 0.5) / 64, rel=1e-6)


def test_a_function_decorated_as_in_basicsr_takes_weight_and_reduction() -> None:
    @weighted_loss
    def cubed(pred: torch.Tensor, target: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        return factor * (pred - target).abs() ** 3

    assert cubed(PRED, TARGET, factor=2.0).item() == 2 * (1 + 8 + 27) / 4
    assert cubed(PRED, TARGET, WEIGHT, reduction="sum").item() == 1 + 4


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\).*\(1, 1, 2, 2\)"):
        L1Loss()(PRED.expand(1, 3, 2, 2), TARGET)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 1, 2, 1, 1\)"):
        L1Loss()(PRED, TARGET, weight=torch.ones(1, 1, 2, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "L1Loss", "reduction": "avg"}, "'none', 'mean' or 'sum'"),
        ({"type": "WeightedTVLoss", "reduction": "none"}, "'mean' or 'sum'"),
        ({"type": "CharbonnierLoss", "eps": 0.0}, "eps: input should be greater than 0, got 0.0"),
        ({"type": "L1Loss", "los_weight": 1.0}, "did you mean 'loss_weight'"),
        ({"type": "L1los"}, "did you mean 'L1Loss'"),
    ],
)
def test_wrong_options_are_named_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message) as caught:
        build_loss(options)
    assert "\n" not in str(caught.value)


def test_the_constructor_itself_names_a_wrong_reduction() -> None:
    with pytest.raises(OptionsError, match="reduction: input should be 'none', 'mean' or 'sum', got 'avg'"):
        MSELoss(reduction="avg")


def test_building_leaves_the_options_as_they_are() -> None:
    options = {"type": "L1Loss", "loss_weight": 0.5}
    assert build_loss(options).loss_weight == 0.5
    assert options == {"type": "L1Loss", "loss_weight": 0.5}

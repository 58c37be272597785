"""What a term can learn of a network before training."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from support.distillation import context
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.distill.base import NetworkPair, NetworkView, boundaries
from basicsr.distill.features import FeatureTerm
from basicsr.utils.errors import OptionsError

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 6, "upscale": 2}
SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 14, "window_size": 7, "embed_dim": 12, "depths": [2, 2],
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect",
}  # fmt: skip


def view(block=EDSR, label: str = "network_g") -> NetworkView:
    return NetworkView(label, build_network(block))


@pytest.mark.parametrize(
    ("stages", "count", "expected"),
    [(32, 4, [8, 16, 24, 32]), (10, 3, [4, 7, 10]), (4, 3, [2, 3, 4]), (6, 1, [6]), (2, 3, [1, 2, 2])],
)
def test_bodies_are_cut_evenly_and_to_their_end(stages, count, expected):
    assert boundaries(stages, count) == expected


def test_positions_are_the_ends_of_even_parts():
    assert view().positions(3) == ("body.1", "body.3", "body.5")
    assert view(SWINIR).positions(2) == ("layers.0", "layers.1")


def test_shapes_are_those_of_a_real_pass_and_looking_changes_nothing():
    looked = view(SWINIR)
    looked.network.train()
    before, state = copy.deepcopy(looked.network.state_dict()), torch.get_rng_state()
    assert looked.shape("conv_first") == looked.shape("layers.1.residual_group.blocks.0") == (12, 21, 28)
    assert looked.shape("conv_after_body")[0] == 12
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in looked.network.state_dict().items())
    assert all(module.training for module in looked.network.modules())
    assert not any(module._forward_hooks for module in looked.network.modules())


def test_a_mode_other_than_training_is_kept():
    looked = view()
    looked.network.train()
    looked.network.body.eval()
    looked.shape("conv_first")
    assert looked.network.training and not looked.network.body.training


def test_what_cannot_be_tapped_is_told():
    with pytest.raises(OptionsError, match=r"EDSR has no module 'body\.9'"):
        view().shape("body.9")
    unused = nn.Sequential(nn.Conv2d(3, 4, 1))
    unused.other = nn.Conv2d(3, 3, 1)
    unused.forward = unused[0].forward
    with pytest.raises(OptionsError, match="network_g: the module 'other' is not run"):
        NetworkView("network_g", unused).shape("other")
    with pytest.raises(OptionsError, match="network_t, Sequential, is not built of a stem, stages"):
        NetworkView("network_t", unused).positions(2)


class Compared(FeatureTerm):
    """Remembers what it was shown."""

    def make_heads(self, student_channels, teacher_channels) -> None:
        self.widths = (list(student_channels), list(teacher_channels))


def attached(**options) -> Compared:
    term = Compared(**options)
    term.attach(NetworkPair(view({**EDSR, "num_block": 2}), view(SWINIR, "network_t")))
    return term


def test_taps_left_out_are_chosen_for_each_network():
    term = attached(positions=2)
    assert (term.student_taps, term.teacher_taps) == (("body.0", "body.1"), ("layers.0", "layers.1"))
    assert term.widths == ([8, 8], [12, 12])


def test_taps_given_are_taken_and_the_other_side_follows_their_number():
    term = attached(student_taps=["conv_after_body"], positions=3)
    assert (term.student_taps, term.teacher_taps) == (("conv_after_body",), ("layers.1",))


def test_mistakes_are_named():
    with pytest.raises(OptionsError, match="Compared: positions: input should be greater than or equal to 1, got 0"):
        Compared(positions=0)
    with pytest.raises(OptionsError, match="must name as many modules as teacher_taps, at least one, got 1 and 2"):
        Compared(student_taps=["a"], teacher_taps=["a", "b"])
    with pytest.raises(OptionsError, match="'upsample' of the student has features of 2 times the input's resolution"):
        attached(student_taps=["upsample"])


def test_features_extended_to_windows_are_cut_to_those_of_the_other_network():
    term = attached(positions=1)
    networks = [build_network({**EDSR, "num_block": 2}), build_network(SWINIR)]
    features, image = [], torch.rand(2, 3, 10, 12)
    for network, taps in zip(networks, (term.student_taps, term.teacher_taps), strict=True):
        with FeatureHooks(network, taps) as found, torch.no_grad():
            network(image)
        features.append(found)
    step = dataclasses.replace(context(), lq=image, student_features=features[0], teacher_features=features[1])
    ((student, teacher),) = term.pairs(step)
    assert student.shape == (2, 8, 10, 12) and teacher.shape == (2, 12, 10, 12)
    assert torch.equal(teacher, features[1]["layers.1"][..., :10, :12])
    both = dataclasses.replace(step, student_features={"body.1": features[1]["layers.1"]})
    ((student, teacher),) = term.pairs(both)
    assert student.shape == teacher.shape == (2, 12, 10, 12)

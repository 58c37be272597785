"""NAFNet and Restormer: equations by hand, others' implementations, the papers' sizes, recognition from weights."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.arch_util import pad_to_multiple
from basicsr.archs.nafnet_arch import NAFBlock
from basicsr.archs.restormer_arch import Attention, ChannelScale, FeedForward, TransformerBlock
from basicsr.utils.complexity import count_parameters
from basicsr.utils.errors import OptionsError
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained

CHEAP = settings(max_examples=15, deadline=None, derandomize=True)
NAFNET: dict[str, Any] = {"type": "NAFNet", "width": 8, "middle_blk_num": 2}
NAFNET |= {"enc_blk_nums": (1, 2), "dec_blk_nums": (2, 1)}
RESTORMER: dict[str, Any] = {"type": "Restormer", "dim": 8, "num_blocks": (1, 2, 1, 1), "num_refinement_blocks": 1}
DUAL_PIXEL = {**RESTORMER, "inp_channels": 6, "dual_pixel_task": True}
BIAS_FREE = {**RESTORMER, "LayerNorm_type": "BiasFree", "bias": True, "heads": (1, 1, 2, 4)}
TINY = {"NAFNet": NAFNET, "Restormer": RESTORMER, "dual pixel": DUAL_PIXEL, "bias free": BIAS_FREE}


def on_meta(block: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):  # shapes are all that is read
        return build_network(block)


def by_formula(network: nn.Module) -> nn.Module:
    """Weights that any program can make: cosines, so large that no part of the network is idle."""
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(network.named_parameters())):
            wave = torch.cos(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + number)
            size = 0.8 / math.sqrt(parameter[0].numel()) if parameter.ndim == 4 and len(parameter) > 1 else 0.5
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_((offset + size * wave).view_as(parameter))
    return network.eval()


def formula_image(*size: int) -> Tensor:
    numbers = torch.arange(math.prod(size), dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.013 * numbers**1.1)).view(size).float()


def spandrels_nafnet() -> Any:
    import_torchvision()
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(**{key: value for key, value in NAFNET.items() if key != "type"})


class TestTheSizesOfThePapers:
    @pytest.mark.parametrize(
        ("block", "blocks", "millions"),
        [
            ({"type": "NAFNet", "width": 32, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1] * 4}, 36, "17.1"),
            ({"type": "NAFNet", "width": 16, "enc_blk_nums": [1, 1, 1, 14], "dec_blk_nums": [1] * 4}, 22, "2.7"),
            ({"type": "Restormer"}, 44, "26.1"),
            ({"type": "Restormer", "dim": 24, "num_blocks": [2, 3, 3, 4], "num_refinement_blocks": 2}, 22, "3.8"),
        ],
        ids=["NAFNet teacher", "NAFNet student", "Restormer teacher", "Restormer student"],
    )
    def test_parameters_and_blocks_are_those_of_dckds_table_1(self, block, blocks, millions):
        network = on_meta(block)
        assert f"{count_parameters(network) / 1e6:.1f}" == millions
        assert sum(isinstance(module, (NAFBlock, TransformerBlock)) for module in network.modules()) == blocks

    def test_restormers_parameters_are_those_of_its_authors(self):
        assert count_parameters(on_meta({"type": "Restormer"})) == 26_126_644


def convolved(x: np.ndarray, convolution: nn.Conv2d) -> np.ndarray:
    """(C, H, W): 1x1, or depthwise 3x3 with zeros around; loops over the taps."""
    weight = convolution.weight.detach().numpy().astype(np.float64)
    if convolution.kernel_size == (1, 1):
        y = np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x)
    else:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        height, width = x.shape[1:]
        y = np.zeros_like(x)
        for row in range(3):
            for column in range(3):
                y += weight[:, 0, row, column, None, None] * padded[:, row : row + height, column : column + width]
    return y if convolution.bias is None else y + convolution.bias.detach().numpy()[:, None, None]


def normalised(x: np.ndarray, norm: Any, eps: float) -> np.ndarray:
    mean, variance = x.mean(0), x.var(0)
    weight, bias = (getattr(norm, name).detach().numpy()[:, None, None] for name in ("weight", "bias"))
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def image_of(channels: int) -> tuple[Tensor, np.ndarray]:
    x = torch.randn(1, channels, 5, 7, generator=torch.Generator().manual_seed(3))
    return x, x[0].numpy().astype(np.float64)


def assert_close(given: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(given[0].detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


class TestEquations:
    def test_nafnets_block(self):
        block = by_formula(NAFBlock(4))
        x, by_hand = image_of(4)
        z = convolved(convolved(normalised(by_hand, block.norm1, 1e-6), block.conv1), block.conv2)
        z = z[:4] * z[4:]
        means = z.mean((1, 2))[:, None, None]
        z = convolved(z * convolved(means, block.sca[1]), block.conv3)
        y = by_hand + block.beta.detach().numpy()[0] * z
        z = convolved(normalised(y, block.norm2, 1e-6), block.conv4)
        y = y + block.gamma.detach().numpy()[0] * convolved(z[:4] * z[4:], block.conv5)
        assert_close(block(x), y)

    def test_a_new_nafnet_block_is_the_identity(self):
        x, _ = image_of(4)
        assert torch.equal(NAFBlock(4)(x), x)

    @pytest.mark.parametrize("bias", [True, False])
    def test_restormers_attention_is_between_channels(self, bias):
        attention = by_formula(Attention(6, 2, bias))
        x, by_hand = image_of(6)
        qkv = convolved(convolved(by_hand, attention.qkv), attention.qkv_dwconv).reshape(3, 2, 3, -1)
        attended = np.zeros((2, 3, 35))
        for head in range(2):
            query, key, value = qkv[:, head]
            for channel in range(3):
                scores = [
                    attention.temperature[head].item()
                    * (query[channel] @ key[other])
                    / (np.linalg.norm(query[channel]) * np.linalg.norm(key[other]))
                    for other in range(3)
                ]
                weights = np.exp(scores) / np.exp(scores).sum()
                attended[head, channel] = weights @ value
        assert_close(attention(x), convolved(attended.reshape(6, 5, 7), attention.project_out))

    def test_restormers_feed_forward(self):
        feed = by_formula(FeedForward(4, 2.66, bias=True))
        x, by_hand = image_of(4)
        hidden = convolved(convolved(by_hand, feed.project_in), feed.dwconv)
        assert hidden.shape[0] == 20  # twice 4 * 2.66, rounded down
        gate, content = hidden[:10], hidden[10:]
        gelu = gate * 0.5 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
        assert_close(feed(x), convolved(gelu * content, feed.project_out))

    def test_bias_free_norms_keep_the_mean(self):
        norm = ChannelScale(5)
        x = np.random.default_rng(0).normal(3, 2, (2, 5))
        wanted = x / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(norm(torch.from_numpy(x)).detach().numpy(), wanted, rtol=1e-6)

    def test_restormers_block_is_two_residual_branches(self):
        block = by_formula(TransformerBlock(6, 2, 2.0, False, "WithBias"))
        x, by_hand = image_of(6)
        first = torch.from_numpy(normalised(by_hand, block.norm1.body, 1e-5)).float()[None]
        y = by_hand + block.attn(first)[0].detach().numpy()
        second = torch.from_numpy(normalised(y, block.norm2.body, 1e-5)).float()[None]
        assert_close(block(x), y + block.ffn(second)[0].detach().numpy())

    def test_a_large_image_in_half_precision_does_not_overflow(self):
        attention = Attention(2, 1, bias=False)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
            output = attention(torch.full((1, 2, 300, 300), 200.0))
        assert torch.isfinite(output).all()


# Of spandrel_extra_arches 0.2.0's Restormer with the weights of `by_formula`, on `formula_image(1, C, 24, 40)`:
# mean, root mean square, first, middle and last number of the output; and a digest of all keys and shapes.
FROZEN: dict[str, tuple[str, tuple[float, ...]]] = {
    "Restormer": ("82961fe6e3077f8c", (0.7316953, 1.303241, -0.5643343, -0.09852785, 1.913677)),
    "dual pixel": ("8859b5905c774b52", (0.1609865, 0.9828057, -0.8306103, 0.03139472, 1.087004)),
    "bias free": ("75717a0433d09de6", (4.12795, 8.023516, -2.172527, -0.8521532, 1.03248)),
}


def figures(output: Tensor) -> tuple[float, ...]:
    flat = output.double().flatten()
    return (
        flat.mean().item(),
        flat.square().mean().sqrt().item(),
        *(flat[index].item() for index in (0, len(flat) // 2, -1)),
    )


def digest(state: dict[str, Tensor]) -> str:
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(state.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TestOthersImplementations:
    @pytest.mark.parametrize("size", [(2, 3, 32, 24), (1, 3, 4, 60)])
    def test_nafnets_outputs_are_spandrels(self, size):
        theirs = by_formula(spandrels_nafnet())
        ours = build_network(NAFNET)
        ours.load_state_dict(theirs.state_dict())
        x = formula_image(*size)
        with torch.no_grad():
            wanted = theirs(x)
            assert (wanted - x).abs().max() > 0.1
            assert (ours.eval()(x) - wanted).abs().max() < 1e-5

    def test_nafnets_odd_sizes_are_spandrels_extended_by_reflection(self):
        theirs = by_formula(spandrels_nafnet())
        ours = build_network(NAFNET)
        ours.load_state_dict(theirs.state_dict())
        x = formula_image(1, 3, 21, 34)
        with torch.no_grad():
            wanted = theirs(F.pad(x, (0, 2, 0, 3), "reflect"))[..., :21, :34]
            assert (ours.eval()(x) - wanted).abs().max() < 1e-5

    @pytest.mark.parametrize("name", FROZEN)
    def test_restormers_keys_and_outputs_are_those_of_its_authors(self, name):
        keys, wanted = FROZEN[name]
        network = by_formula(build_network(TINY[name]))
        assert digest(network.state_dict()) == keys
        with torch.no_grad():
            output = network(formula_image(1, TINY[name].get("inp_channels", 3), 24, 40))
        assert figures(output) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (17, 31)])
def test_any_size_is_extended_by_reflection_and_cropped(name, size):
    network = by_formula(build_network(TINY[name]))
    x = formula_image(2, TINY[name].get("inp_channels", 3), *size)
    with torch.no_grad():
        output = network(x)
        extended = pad_to_multiple(x, network.padder_size)
        assert output.shape == (2, 3, *size)
        assert torch.equal(output, network(extended)[..., : size[0], : size[1]])


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_autocast_stays_close_and_gives_finite_gradients(name):
    network = by_formula(build_network(TINY[name]))
    x = formula_image(1, TINY[name].get("inp_channels", 3), 24, 40)
    wanted = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = network(x)
    assert (given.float() - wanted).norm() / wanted.norm() < 0.03
    given.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


class TestRecognition:
    @CHEAP
    @given(
        colours=st.sampled_from([1, 3, 4]),
        width=st.integers(1, 9),
        middle=st.integers(0, 2),
        levels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3),
    )
    def test_nafnets_hyperparameters_are_read(self, colours, width, middle, levels):
        down, up = zip(*levels, strict=True)
        block = {"type": "NAFNet", "img_channel": colours, "width": width, "middle_blk_num": middle}
        block |= {"enc_blk_nums": down, "dec_blk_nums": up}
        found = recognise(on_meta(block).state_dict())
        assert found is not None and found.scale == 1 and not found.assumed
        assert found.options == block

    @CHEAP
    @given(
        dim=st.sampled_from([8, 24, 48]),
        heads=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=4, max_size=4),
        blocks=st.lists(st.integers(1, 2), min_size=4, max_size=4),
        refinement=st.integers(0, 2),
        factor=st.sampled_from([1.0, 2.0, 2.5, 2.66, 4.0]),
        bias=st.booleans(),
        norm=st.sampled_from(["WithBias", "BiasFree"]),
        dual=st.booleans(),
    )
    def test_restormers_hyperparameters_are_read(self, dim, heads, blocks, refinement, factor, bias, norm, dual):
        block = {"type": "Restormer", "dim": dim, "num_blocks": tuple(blocks), "heads": tuple(heads), "bias": bias}
        block |= {"num_refinement_blocks": refinement, "LayerNorm_type": norm, "dual_pixel_task": dual}
        block |= {"inp_channels": 6 if dual else 3, "out_channels": 3}
        state = on_meta({**block, "ffn_expansion_factor": factor}).state_dict()
        found = recognise(state)
        assert found is not None and found.scale == 1
        assert {key: found.options[key] for key in block} == block
        again = on_meta(found.options).state_dict()
        assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in again.items()}

    @pytest.mark.parametrize("dim", [24, 48])
    def test_restormers_usual_factor_is_read_as_it_is_written(self, dim):
        state = on_meta({"type": "Restormer", "dim": dim}).state_dict()
        assert recognise(state).options["ffn_expansion_factor"] == 2.66

    def test_they_are_told_in_words(self):
        nafnet, restormer = recognise(on_meta(NAFNET).state_dict()), recognise(on_meta(BIAS_FREE).state_dict())
        assert str(nafnet) == "NAFNet with 8 channels, 1+2 blocks down, 2 in the middle, 2+1 up, 3 colours"
        assert (
            str(restormer) == "Restormer with 8 channels, 1+2+1+1 blocks, 1 of refinement, norms 'BiasFree', 3 colours"
        )

    def test_one_key_too_many_is_another_network(self):
        for block in (NAFNET, RESTORMER):
            state = on_meta(block).state_dict()
            assert recognise({**state, "another.weight": torch.zeros(1)}) is None

    @pytest.mark.parametrize("name", TINY)
    @pytest.mark.parametrize("recorded", [True, False], ids=["our file", "bare weights"])
    def test_a_file_becomes_the_network_that_it_is_of(self, name, recorded, tmp_path):
        network = by_formula(build_network(TINY[name]))
        content: dict[str, Any] = {"params": network.state_dict()}
        if recorded:
            content["network"] = {**TINY[name], "scale": 1}
        torch.save(content, tmp_path / "net_g_1.pth")
        pretrained = load_pretrained(tmp_path / "net_g_1.pth")
        colours = TINY[name].get("inp_channels", 3)
        assert (pretrained.architecture, pretrained.scale) == (TINY[name]["type"], 1)
        assert (pretrained.in_channels, pretrained.out_channels) == (colours, 3)
        assert (pretrained.remark is None) == recorded
        x = formula_image(1, colours, 16, 24)
        with torch.no_grad():
            assert torch.equal(pretrained.network(x), network(x))

    def test_spandrels_weights_of_nafnet_become_our_network(self, tmp_path):
        theirs = by_formula(spandrels_nafnet())
        torch.save(theirs.state_dict(), tmp_path / "NAFNet.pth")
        pretrained = load_pretrained(tmp_path / "NAFNet.pth")
        assert type(pretrained.network).__module__ == "basicsr.archs.nafnet_arch"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({**NAFNET, "dec_blk_nums": (1,)}, "enc_blk_nums: has 2 entries and dec_blk_nums 1"),
        ({**NAFNET, "width": 0}, "width: input should be greater than or equal to 1, got 0"),
        ({**NAFNET, "enc_blk_nums": (1, -1)}, r"enc_blk_nums\[1\]: input should be greater than or equal to 0"),
        ({**RESTORMER, "dim": 7}, "dim: must be even"),
        ({**RESTORMER, "heads": (1, 2, 4)}, "heads: needs 4 entries, one per level"),
        ({**RESTORMER, "heads": (3, 2, 4, 8)}, "3 do not divide the 8 channels of level 1"),
        ({**RESTORMER, "inp_channels": 6}, "inp_channels: 6 and out_channels 3 must be equal"),
        ({**RESTORMER, "num_blocks": (1, 1, -1, 1)}, r"num_blocks\[2\]: input should be greater than or equal to 0"),
        ({**RESTORMER, "LayerNorm_type": "Bias"}, "LayerNorm_type"),
    ],
)
def test_what_is_not_supported_is_refused(block, message):
    with pytest.raises(OptionsError, match=message):
        build_network(block)

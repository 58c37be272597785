"""Recognising layouts by keys and shapes: hyperparameters over their ranges, inverse maps, what is none of them."""

from __future__ import annotations

import contextlib
import inspect
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import published

from basicsr.archs import build_network
from basicsr.archs.edsr_arch import to_edsr_pytorch
from basicsr.archs.mean_shift import without_mean_shift
from basicsr.archs.rcan_arch import to_original_rcan
from basicsr.archs.recognition import UnsupportedWeights
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.weights.layouts import recognise

CHEAP = settings(max_examples=15, deadline=None, derandomize=True)
scales = st.sampled_from([1, 2, 3, 4, 8])
small = st.integers(1, 3)


def built(block):
    with torch.device("meta"):  # shapes are all that is read
        return build_network(block).state_dict()


def assert_recognised(block, state):
    found = recognise(state)
    assert found is not None and found.architecture == block["type"]
    assert {key: found.options[key] for key in block} == block
    assert found.scale == block["upscale"]
    again = built(found.options)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in again.items()}


@CHEAP
@given(colours=st.sampled_from([1, 3, 4]), width=st.integers(1, 20), blocks=small, scale=scales)
def test_edsrs_hyperparameters_are_read(colours, width, blocks, scale):
    block = {"type": "EDSR", "num_in_ch": colours, "num_out_ch": colours, "num_feat": width, "num_block": blocks}
    block |= {"upscale": scale, "rgb_mean": (0.0,) * colours}
    state = built(block)
    if colours == 3:
        del block["rgb_mean"]
    assert_recognised(block, state)


@CHEAP
@given(width=st.integers(4, 40), squeeze=st.integers(1, 4), groups=small, blocks=small, scale=scales)
def test_rcans_hyperparameters_are_read(width, squeeze, groups, blocks, scale):
    block = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": width, "num_group": groups}
    block |= {"num_block": blocks, "upscale": scale}
    state = built({**block, "squeeze_factor": squeeze})
    assert_recognised(block, state)
    assert width // recognise(state).options["squeeze_factor"] == width // squeeze


@CHEAP
@given(colours=st.sampled_from([1, 3]), width=st.integers(1, 20), blocks=small, scale=st.sampled_from([2, 3, 4]))
def test_msrresnets_hyperparameters_are_read(colours, width, blocks, scale):
    block = {"type": "MSRResNet", "num_in_ch": colours, "num_out_ch": colours, "num_feat": width}
    block |= {"num_block": blocks, "upscale": scale}
    assert_recognised(block, built(block))


@CHEAP
@given(
    heads=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    depth=st.integers(2, 3),
    window=st.integers(2, 8),
    windows=st.integers(2, 4),
    hidden=st.floats(0.5, 4.0),
    upsampler=st.sampled_from(["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""]),
    scale=st.sampled_from([2, 3, 4]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    residual=st.sampled_from(["1conv", "3conv"]),
    colours=st.sampled_from([1, 3]),
)
def test_swinirs_hyperparameters_are_read(
    heads, depth, window, windows, hidden, upsampler, scale, flags, residual, colours
):
    scale = {"nearest+conv": 4, "": 1}.get(upsampler, scale)
    block = {"type": "SwinIR", "img_size": window * windows, "in_chans": colours, "embed_dim": 12}
    block |= {"depths": (depth,) * len(heads), "num_heads": tuple(heads), "window_size": window, "upscale": scale}
    block |= dict(zip(("qkv_bias", "ape", "patch_norm"), flags, strict=True))
    block |= {"upsampler": upsampler, "resi_connection": residual}
    state = built({**block, "mlp_ratio": hidden})
    assert_recognised(block, state)


def test_swinirs_published_for_jpeg_have_a_range_of_255():
    jpeg = {"type": "SwinIR", "img_size": 126, "in_chans": 1, "embed_dim": 12, "depths": (2,), "num_heads": (2,)}
    jpeg |= {"window_size": 7, "upscale": 1, "upsampler": ""}
    assert recognise(built(jpeg)).options["img_range"] == 255
    assert recognise(built({**jpeg, "window_size": 8, "img_size": 128})).options["img_range"] == 1


@pytest.mark.parametrize(("width", "blocks", "res_scale"), [(64, 16, 1), (256, 32, 0.1)])
def test_edsrs_published_sizes_are_told_in_words(width, blocks, res_scale):
    block = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": width, "num_block": blocks, "upscale": 2}
    found = recognise(built(block))
    assert str(found) == f"EDSR with {width} channels, {blocks} blocks, 3 colours, x2"
    assert found.assumed == (f"res_scale {res_scale:g}", "img_range 255", "the mean colour of DIV2K")


def of_every_family() -> dict[str, dict[str, torch.Tensor]]:
    """A state of every network, as small as its options allow."""
    small = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 2, "num_group": 1, "upscale": 2}
    small |= {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "img_size": 8}
    small |= {"enc_blk_nums": [1], "dec_blk_nums": [1], "dim": 8, "num_blocks": [1, 1, 1, 1]}
    networks = ((name, network, inspect.signature(network).parameters) for name, network in ARCH_REGISTRY)
    return {
        network.__name__: built({"type": name, **{key: small[key] for key in small if key in parameters}})
        for name, network, parameters in networks
    }


def test_no_network_takes_the_weights_of_another():
    readers = {network.__name__: network for _, network in ARCH_REGISTRY if hasattr(network, "from_published")}
    states = of_every_family()
    assert len(readers) > 15
    for family, state in states.items():
        taken = []
        for name, network in readers.items():
            with contextlib.suppress(KeyError, IndexError, ZeroDivisionError, RuntimeError):
                if (found := network.from_published(state)) is not None:
                    assert found.architecture == name
                    taken.append(name)
        assert taken == ([family] if family in readers else []), family


@pytest.mark.parametrize("family", ["IMDN", "RFDN", "RLFN", "BSRN", "LKDN", "PAN", "CARN", "MDSR", "SAFMN", "SAFMNPP"])
def test_small_networks_with_a_key_too_few_or_too_many_are_others(family):
    block = {"type": family, "num_feat": 16, "upscale": 2}
    state = built(block if family == "CARN" else {**block, "num_block": 2})
    assert recognise(state).architecture == family
    for missing in (next(iter(state)), list(state)[len(state) // 2]):
        assert recognise({key: value for key, value in state.items() if key != missing}) is None
    assert recognise({**state, "more.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("key", ["another.weight", "body.0.attention.weight", "upsample", "conv_first.scale"])
def test_one_key_too_many_is_another_network(key):
    state = built({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3})
    assert recognise(state) is not None
    shapes = {**state, key: torch.zeros(1)}
    assert recognise(shapes) is None
    assert recognise({}) is None


def test_shapes_unlike_any_networks_are_no_error():
    state = built({"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_group": 1, "num_block": 1})
    assert recognise({key: torch.zeros(()) for key in state}) is None
    assert recognise({key: torch.zeros(0, 0) for key in state}) is None


@pytest.mark.parametrize(
    ("type_", "there", "reference"),
    [("EDSR", to_edsr_pytorch, published.edsr(scale=3)), ("RCAN", to_original_rcan, published.rcan(scale=3))],
    ids=["EDSR", "RCAN"],
)
def test_there_and_back_again_is_the_identity(type_, there, reference):
    state = reference.state_dict()
    back = there(recognise(state).state)
    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=1e-6, atol=0) for key in state)
    assert all(torch.equal(back[key], state[key]) for key in state if "mean" not in key)


def test_the_inverse_maps_refuse_what_is_not_theirs():
    edsr = recognise(published.edsr().state_dict()).state
    rcan = recognise(published.rcan().state_dict()).state
    with pytest.raises(UnsupportedWeights, match="not the weights of our RCAN"):
        to_original_rcan(edsr)
    with pytest.raises(UnsupportedWeights, match="not the weights of our EDSR"):
        to_edsr_pytorch(rcan)
    with pytest.raises(UnsupportedWeights, match="1 entries for 3 colours"):
        to_edsr_pytorch(edsr, rgb_mean=[0.0])


def test_a_mean_colour_of_gray_images_has_no_place_in_the_layout():
    gray = build_network({"type": "EDSR", "num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.5], "num_feat": 4})
    with pytest.raises(UnsupportedWeights, match="no mean colour for 1 colours"):
        to_edsr_pytorch(gray.state_dict(), rgb_mean=[0.5])


def test_a_shift_that_drops_a_colour_is_refused():
    network = published.edsr()
    network.sub_mean.weight[0] = 0
    with pytest.raises(UnsupportedWeights, match="drops a colour"):
        recognise(network.state_dict())


@pytest.mark.parametrize(
    ("rgb_range", "mean"), [(255.0, published.DIV2K), (1.0, (0.9, 0.1, 0.4)), (127.5, published.DIV2K)]
)
def test_range_and_mean_of_a_shift_are_what_was_put_in(rgb_range, mean):
    state = published.edsr(rgb_range=rgb_range, mean=mean).state_dict()
    renamed = {
        key.replace("head.0", "conv_first").replace("tail.1", "conv_last"): value for key, value in state.items()
    }
    without, img_range, rgb_mean, _ = without_mean_shift(renamed)
    assert img_range == rgb_range and rgb_mean == pytest.approx(mean, rel=1e-6)
    assert torch.equal(without["conv_first.weight"], renamed["conv_first.weight"])
    assert torch.equal(without["conv_last.bias"], renamed["conv_last.bias"])


def test_files_of_mmagic_are_edsr_for_images_in_0_to_1_and_msrresnet():
    ours = built({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4})
    names = {"upsample.0": "upsample.0.upsample_conv", "upsample.2": "upsample.1.upsample_conv"}
    split = {key: key.rsplit(".", 1) for key in ours}
    found = recognise({f"{names.get(owner, owner)}.{kind}": ours[key] for key, (owner, kind) in split.items()})
    assert (found.architecture, found.layout, found.scale) == ("EDSR", "MMagic", 4)
    assert found.options["img_range"] == 1.0 and "img_range 1" in found.assumed
    assert found.state.keys() == ours.keys() and all(found.state[key] is ours[key] for key in ours)

    ours = built({"type": "MSRResNet", "num_feat": 8, "num_block": 2, "upscale": 3})
    names = {"body.": "trunk_net.", "upconv1.": "upsample1.upsample_conv."}
    theirs = {re.sub(r"^(body\.|upconv1\.)", lambda found: names[found[1]], key): value for key, value in ours.items()}
    found = recognise(theirs)
    assert (found.architecture, found.layout, found.scale) == ("MSRResNet", "MMagic", 3)
    assert found.state.keys() == ours.keys()


def test_mdsr_is_one_file_for_its_scales():
    options = {"type": "MDSR", "num_feat": 8, "num_block": 2, "scales": (2, 3, 4), "upscale": 2}
    network, mean = build_network(options), torch.tensor(published.DIV2K)
    shifts = {"sub_mean.weight": torch.eye(3)[:, :, None, None], "sub_mean.bias": -255 * mean}
    shifts |= {"add_mean.weight": torch.eye(3)[:, :, None, None], "add_mean.bias": 255 * mean}
    found = recognise({**shifts, **network.state_dict()})
    assert (found.scales, found.options["img_range"], found.options["num_block"]) == ((2, 3, 4), 255, 2)
    x = torch.rand(1, 3, 6, 7)
    for number, scale in enumerate(found.scales):
        branch = build_network(found.at(scale).options)
        branch.load_state_dict(found.state)
        y = network.pre_process[number](network.head(255 * (x - mean[:, None, None])))
        y = network.tail(network.upsample[number](network.body(y) + y)) / 255 + mean[:, None, None]
        assert y.shape[-1] == 7 * scale
        assert torch.allclose(branch(x), y, atol=1e-6)

"""Networks recognised from files alone: published layouts, prefixes, kinds of file, spandrel's networks, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from support import published
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.edsr_arch import to_edsr_pytorch
from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.archs.rcan_arch import to_original_rcan
from basicsr.utils.complexity import count_multiply_adds
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import load_pretrained, network_for

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
RCAN = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 2, "num_block": 1}
RCAN |= {"squeeze_factor": 4, "upscale": 3}
SWINIR = {"type": "SwinIR", "img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4}
SWINIR |= {"upscale": 4, "upsampler": "pixelshuffledirect", "mlp_ratio": 2}
NAFNET = {"type": "NAFNet", "width": 4, "enc_blk_nums": [1, 2], "dec_blk_nums": [1, 1]}
RESTORMER = {"type": "Restormer", "dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
MSRRESNET = {"type": "MSRResNet", "num_feat": 8, "num_block": 2, "upscale": 3}

# Networks on a range of 255 lose two digits more of float32's seven than those on a range of 1.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def image(height=11, width=9, colours=3):
    return torch.rand(2, colours, height, width, generator=torch.Generator().manual_seed(5))


def saved(content, tmp_path, name="net.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def re_named(key, names):
    for ours, theirs in names:
        key = key.replace(ours, theirs)
    return key


def assert_equal_outputs(pretrained, reference, x, tolerance=TOLERANCE):
    with torch.no_grad():
        expected = reference(x.clone())
        given = pretrained.network(x)
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", [published.edsr, published.rcan])
def test_head_body_tail_layouts_give_equal_outputs(make, scale, tmp_path):
    reference = make(scale=scale)
    pretrained = load_pretrained(saved(reference.state_dict(), tmp_path))
    assert (pretrained.scale, pretrained.in_channels, pretrained.out_channels) == (scale, 3, 3)
    assert pretrained.layout == {published.edsr: "EDSR-PyTorch", published.rcan: "RCAN's original"}[make]
    assert pretrained.block["img_range"] == 255 and pretrained.block["rgb_mean"] == published.DIV2K
    assert "res_scale 1" in pretrained.remark
    assert_equal_outputs(pretrained, reference, image())


@pytest.mark.parametrize("make", [published.edsr, published.rcan])
@pytest.mark.parametrize(
    "shift",
    [
        {"mean": (0.3, 0.5, 0.7)},
        {"std": (0.5, 0.25, 2.0)},
        {"rgb_range": 1.0},
        {"rgb_range": 256.0},
        {"mean": (0.0, 0.0, 0.0)},
        {"mean": None, "rgb_range": 1.0},
    ],
    ids=str,
)
def test_any_mean_shift_is_honoured(make, shift, tmp_path):
    reference = make(**shift)
    pretrained = load_pretrained(saved(reference.state_dict(), tmp_path))
    assert pretrained.block["img_range"] == shift.get("rgb_range", 255)
    assert_equal_outputs(pretrained, reference, image())


@pytest.mark.parametrize("make", [published.edsr, published.rcan])
def test_a_mean_shift_that_was_trained_along_is_honoured(make, tmp_path):
    reference = make()
    for shift in (reference.sub_mean, reference.add_mean):
        shift.weight += 0.02 * torch.randn_like(shift.weight)
        shift.bias += torch.randn_like(shift.bias)
    pretrained = load_pretrained(saved(reference.state_dict(), tmp_path))
    assert "mean colour" in pretrained.remark
    assert_equal_outputs(pretrained, reference, image())


def test_half_a_mean_shift_is_refused(tmp_path):
    state = published.edsr().state_dict()
    del state["add_mean.bias"]
    with pytest.raises(CheckpointError, match="of sub_mean and add_mean only a part is there"):
        load_pretrained(saved(state, tmp_path))


def test_edsrs_res_scale_is_the_published_one_of_its_width(tmp_path):
    reference = published.edsr(scale=2, width=256, blocks=1, res_scale=0.1)
    pretrained = load_pretrained(saved(reference.state_dict(), tmp_path))
    assert "res_scale 0.1" in pretrained.remark
    assert_equal_outputs(pretrained, reference, image(5, 4))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [{}, {"img_range": 1.0, "rgb_mean": [0.1, 0.2, 0.3]}], ids=str)
def test_our_weights_under_the_published_keys_give_equal_outputs(scale, shift):
    x = image()
    for block, convert, make in (
        (EDSR, to_edsr_pytorch, lambda: published.edsr(scale=scale)),
        (RCAN, to_original_rcan, lambda: published.rcan(scale=scale, blocks=1)),
    ):
        network = build_network({**block, "upscale": scale, **shift}).eval()
        reference = make()
        reference.load_state_dict(convert(network.state_dict(), **shift))
        with torch.no_grad():
            assert (network(x) - reference(x)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("colours", [1, 3])
def test_spandrel_runs_our_rcan_under_its_original_keys(colours):
    mean = {} if colours == 3 else {"rgb_mean": [0.0]}
    network = build_network({**RCAN, "num_in_ch": colours, "num_out_ch": colours, **mean}).eval()
    state = to_original_rcan(network.state_dict(), **mean)
    descriptor = published.spandrel_architecture("RCAN").RCANArch().load(state)
    x = image(colours=colours)
    with torch.no_grad():
        assert (descriptor.model(x.clone()) - network(x)).abs().max() <= TOLERANCE


SWINIRS = {
    "classical": {},
    "classical x3": {"scale": 3},
    "classical x8": {"scale": 8},
    "lightweight": {"upsampler": "pixelshuffledirect", "scale": 3},
    "real, large": {"upsampler": "nearest+conv", "scale": 4, "resi_connection": "3conv"},
    "denoising, gray": {"upsampler": "", "scale": 1, "colours": 1},
    "denoising, colour": {"upsampler": "", "scale": 1},
    "JPEG": {"upsampler": "", "scale": 1, "window": 7, "img_size": 14, "colours": 1, "img_range": 255.0},
    "another mlp": {"mlp_ratio": 2.6, "qkv_bias": False, "patch_norm": False},
}


@pytest.mark.parametrize("kind", SWINIRS)
def test_swinirs_of_its_authors_give_equal_outputs(kind, tmp_path):
    options = SWINIRS[kind]
    reference = published.swinir(**options)
    pretrained = load_pretrained(saved({"params": reference.state_dict()}, tmp_path))
    assert (pretrained.architecture, pretrained.layout) == ("SwinIR", "SwinIR's original")
    assert pretrained.scale == options.get("scale", 2)
    assert pretrained.block["img_size"] == options.get("img_size", 16)
    colours = options.get("colours", 3)
    assert pretrained.in_channels == pretrained.out_channels == colours
    for height, width in ((28, 28), (16, 24), (19, 30)):
        x = image(height, width, colours)
        assert_equal_outputs(pretrained, reference, x)


def test_swinirs_absolute_positions_are_read_for_their_size(tmp_path):
    reference = published.swinir(ape=True)
    pretrained = load_pretrained(saved(reference.state_dict(), tmp_path))
    assert pretrained.block["ape"] is True and pretrained.block["img_size"] == 16
    assert_equal_outputs(pretrained, reference, image(16, 16))


@pytest.mark.parametrize("names", [("attn_mask", "position_index"), ("attn_mask",), ("position_index",)], ids=str)
def test_swinir_without_its_derived_buffers_is_the_same_network(names, tmp_path):
    reference = published.swinir()
    state = {k: v for k, v in reference.state_dict().items() if not any(name in k for name in names)}
    pretrained = load_pretrained(saved(state, tmp_path))
    assert_equal_outputs(pretrained, reference, image(16, 16))
    assert ("shifted windows" in pretrained.remark) is (names == ("attn_mask",))


def test_options_beside_weights_without_masks_say_whether_windows_are_shifted(tmp_path):
    block = {**SWINIR, "img_size": 4}  # the image is one window
    network = build_network(block).eval()
    content = {"params": network.state_dict(), "network": {**block, "scale": 4}}
    pretrained = load_pretrained(saved(content, tmp_path))
    assert (pretrained.layout, pretrained.block["img_size"]) == ("ours", 4)
    assert torch.equal(pretrained.network(image()), network(image()))


def test_swinir_at_x2_for_real_images_is_left_to_spandrel(tmp_path):
    reference = published.swinir(upsampler="nearest+conv", scale=2)
    pretrained = load_pretrained(saved({"params_ema": reference.state_dict()}, tmp_path))
    assert (pretrained.layout, pretrained.architecture, pretrained.scale) == ("spandrel", "SwinIR", 2)
    assert_equal_outputs(pretrained, lambda x: reference(x).clamp(0, 1), image(16, 16))


@pytest.mark.parametrize("block", [EDSR, RCAN, SWINIR, MSRRESNET, NAFNET, RESTORMER], ids=lambda block: block["type"])
def test_basicsrs_files_are_recognised_by_shapes(block, tmp_path):
    network = build_network(block).eval()
    pretrained = load_pretrained(saved({"params": network.state_dict()}, tmp_path))
    assert pretrained.architecture == block["type"] and pretrained.scale == block.get("upscale", 1)
    for key, value in block.items():
        assert pretrained.block[key] == (tuple(value) if isinstance(value, list) else value)
    assert torch.equal(pretrained.network(image()), network(image()))
    assert not pretrained.network.training


def test_kairs_msrresnet_is_ours_under_other_names(tmp_path):
    network = build_network({**MSRRESNET, "upscale": 4}).eval()
    state = {
        k.replace("body.", "recon_trunk.").replace("conv_hr", "HRconv"): v for k, v in network.state_dict().items()
    }
    pretrained = load_pretrained(saved(state, tmp_path))
    assert pretrained.layout == "ESRGAN and KAIR" and pretrained.scale == 4
    assert torch.equal(pretrained.network(image()), network(image()))


WRAPPINGS = {
    "flat": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "lr": 0.1}},
    "a name of its own": lambda state: {"weights_of_generator": state, "step": 7},
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "DDP of a compiled network": lambda state: {"params": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "compiled inside": lambda state: {k.replace("body.", "body._orig_mod."): v for k, v in state.items()},
    "netG": lambda state: {f"netG.{key}": value for key, value in state.items()},
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.0",
        "state_dict": {
            **{f"net_g.{key}": value for key, value in state.items()},
            "loss.vgg.0.weight": torch.zeros(4, 3, 3, 3),
        },
    },
    "two names": lambda state: {"model": {"generator": state, "step": 7}},
    "two prefixes": lambda state: {"state_dict": {f"trainer.model.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_and_prefixes_are_taken_off(wrapping, tmp_path):
    network = build_network(EDSR).eval()
    path = saved(WRAPPINGS[wrapping](network.state_dict()), tmp_path)
    assert torch.equal(load_pretrained(path).network(image()), network(image()))
    reference = published.edsr(scale=2)
    path = saved(WRAPPINGS[wrapping](reference.state_dict()), tmp_path)
    assert_equal_outputs(load_pretrained(path), reference, image())
    loaded, _ = network_for(EDSR, path)
    with torch.no_grad():
        assert (loaded(image()) - reference(image())).abs().max() <= TOLERANCE


def test_averaged_weights_are_preferred_unless_others_are_asked_for(tmp_path):
    plain, averaged = build_network(EDSR).eval(), build_network(EDSR).eval()
    path = saved({"params": plain.state_dict(), "params_ema": averaged.state_dict()}, tmp_path)
    assert torch.equal(load_pretrained(path).network(image()), averaged(image()))
    assert load_pretrained(path).weights == "params_ema"
    asked = load_pretrained(path, param_key="params")
    assert torch.equal(asked.network(image()), plain(image()))
    assert "also has the weights 'params_ema'" in asked.remark and "also" not in load_pretrained(path).remark


def test_weights_asked_for_by_name_are_not_replaced_by_others_where_only_they_are_wanted(tmp_path):
    network = build_network(EDSR)
    path = saved({"params": network.state_dict(), "network": EDSR, 3: "three"}, tmp_path)
    assert load_pretrained(path, param_key="params", only_this=True).weights == "params"
    assert load_pretrained(path, param_key="ema").weights == "params"
    for name in ("ema", "network"):
        with pytest.raises(CheckpointError, match=rf"has no weights '{name}', it has params; give one of these"):
            load_pretrained(path, param_key=name, only_this=True)
    flat = saved(network.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="has no weights 'params', it has one set without a name"):
        load_pretrained(flat, param_key="params", only_this=True)
    assert load_pretrained(flat).weights is None


def test_a_dict_that_holds_itself_is_refused_in_one_line(tmp_path):
    content: dict = {"step": 7}
    content["model"] = content
    with pytest.raises(CheckpointError, match="holds itself"):
        load_pretrained(saved(content, tmp_path))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_networks_are_float32_whatever_the_file_holds(legacy, dtype, tmp_path):
    network = build_network(EDSR).eval()
    state = {key: value.to(dtype) for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    pretrained = load_pretrained(tmp_path / "net.pth")
    assert {value.dtype for value in pretrained.network.state_dict().values()} == {torch.float32}
    assert torch.equal(pretrained.network.conv_first.weight, state["conv_first.weight"].float())


def test_safetensors_load_with_and_without_a_header(tmp_path):
    from safetensors.torch import save_file

    network = build_network({**EDSR, "res_scale": 0.5}).eval()
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    assert load_pretrained(tmp_path / "bare.safetensors").block["res_scale"] == 1  # all that shapes allow to say
    header = {"network": json.dumps({**EDSR, "res_scale": 0.5, "scale": 2}), "training": '{"iteration": 7}', "by": "us"}
    save_file(network.state_dict(), tmp_path / "told", metadata=header)
    pretrained = load_pretrained(tmp_path / "told")
    assert pretrained.metadata == {"training": {"iteration": 7}, "by": "us"} and pretrained.layout == "ours"
    assert torch.equal(pretrained.network(image()), network(image()))


class TestOptionsBesideTheWeights:
    """`network` in a file is our training's word for what shapes do not show, and a stranger's data."""

    def test_they_decide_what_shapes_do_not_show(self, tmp_path):
        block = {**EDSR, "res_scale": 0.3, "img_range": 1.0, "rgb_mean": [0.1, 0.2, 0.3]}
        network = build_network(block).eval()
        content = {"params": network.state_dict(), "network": {**block, "scale": 2}, "training": {"iteration": 9}}
        pretrained = load_pretrained(saved(content, tmp_path))
        assert (pretrained.layout, pretrained.remark) == ("ours", None)
        assert pretrained.metadata == {"training": {"iteration": 9}} and pretrained.block == block
        assert torch.equal(pretrained.network(image()), network(image()))

    @pytest.mark.parametrize("block", [RCAN, SWINIR, MSRRESNET, NAFNET, RESTORMER], ids=lambda block: block["type"])
    def test_they_are_taken_for_every_network(self, block, tmp_path):
        network = build_network(block).eval()
        content = {"params": network.state_dict(), "network": {**block, "scale": block.get("upscale", 1)}}
        pretrained = load_pretrained(saved(content, tmp_path))
        assert (pretrained.layout, pretrained.remark) == ("ours", None)

    # Hidden widths of dim 8 are 21, 42, 85 and 170 for 2.66 and for all factors from 2.65625 on, below 2.671875.
    @pytest.mark.parametrize("factor", [2.65625, 2.66, 2.6667, 2.671, 2.6718])
    def test_factors_that_make_equal_widths_are_equal(self, factor, tmp_path):
        block = {**RESTORMER, "ffn_expansion_factor": factor}
        network = build_network(block).eval()
        content = {"params": network.state_dict(), "network": {**block, "scale": 1}}
        pretrained = load_pretrained(saved(content, tmp_path))
        assert (pretrained.layout, pretrained.remark, pretrained.block) == ("ours", None, block)
        assert torch.equal(pretrained.network(image()), network(image()))

    @pytest.mark.parametrize(
        "factor", [2.65, 2.672, 2.6733, float("inf"), float("nan"), "2.66", "inf", 10**400, None, [2.66]], ids=str
    )
    def test_other_factors_are_left_aside_for_what_the_weights_show(self, factor, tmp_path):
        network = build_network(RESTORMER).eval()
        recorded = {**RESTORMER, "ffn_expansion_factor": factor, "scale": 1}
        pretrained = load_pretrained(saved({"params": network.state_dict(), "network": recorded}, tmp_path))
        assert pretrained.layout == "BasicSR" and "do not fit its weights" in pretrained.remark
        assert torch.equal(pretrained.network(image()), network(image()))

    @pytest.mark.parametrize(
        "recorded",
        [
            {"type": "os.system", "command": "touch harm"},
            {"type": "__import__"},
            {**EDSR, "num_block": 10**9},
            {**EDSR, "num_feat": "__import__('os').system('touch harm')"},
            {**EDSR, "rgb_mean": [0.1]},
            {**EDSR, "upscale": 4},
            {**EDSR, "unknown": 1},
            {**RCAN, "num_group": 10**9},
            {**SWINIR, "mlp_ratio": float("inf")},
            {**SWINIR, "img_size": 10**8},
            {**SWINIR, "img_size": 16, "window_size": 7},
            {**SWINIR, "img_size": -3},
            {**EDSR, "res_scale": None},
            {**EDSR, "num_in_ch": 0},
            {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 10**9},
            {"type": 3},
            {},
            "EDSR",
        ],
        ids=lambda recorded: str(recorded)[:60],
    )
    def test_they_do_no_harm_and_shapes_are_read_instead(self, recorded, tmp_path):
        network = build_network(EDSR).eval()
        pretrained = load_pretrained(saved({"params": network.state_dict(), "network": recorded}, tmp_path))
        assert pretrained.architecture == "EDSR" and pretrained.layout == "BasicSR"
        assert torch.equal(pretrained.network(image()), network(image()))

    def test_a_network_that_only_its_options_tell_is_built_from_them(self, tmp_path):
        block = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}
        network = build_network(block)
        content = {"params": network.state_dict(), "network": {**block, "scale": 1}}
        assert load_pretrained(saved(content, tmp_path)).architecture == "VGGStyleDiscriminator"
        content["network"]["num_feat"] = 10**9
        with pytest.raises(CheckpointError, match="no network that is recognised"):
            load_pretrained(saved(content, tmp_path))


def esrgan(scale=4):
    """ESRGAN+, which only spandrel has."""
    architecture = published.spandrel_architecture("ESRGAN")
    network = architecture.ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=scale, plus=True)
    return network.eval().requires_grad_(False)


class TestSpandrel:
    """Architectures that are not ours."""

    def test_its_networks_are_recognised_and_run_at_any_size(self, tmp_path):
        reference = esrgan()
        pretrained = load_pretrained(saved({"params_ema": reference.state_dict()}, tmp_path))
        assert (pretrained.architecture, pretrained.layout, pretrained.scale) == ("ESRGAN", "spandrel", 4)
        assert pretrained.block is None and "modules lie under 'model.'" in pretrained.remark
        for size in ((7, 9), (1, 1)):
            x = image(*size)
            before = x.clone()
            assert pretrained.network(x).shape == (2, 3, 4 * size[0], 4 * size[1])
            assert torch.equal(x, before)
        expected = reference(image()).clamp(0, 1)
        assert torch.equal(pretrained.network(image()), expected)

    def test_sizes_that_it_cannot_take_are_extended_as_it_does(self, tmp_path):
        from spandrel import MAIN_REGISTRY

        # A denoiser that halves thrice and gets a map of the noise beside the image, both by spandrel's rules.
        state = published.spandrel_architecture("DRUNet").DRUNet(in_nc=4, out_nc=3, nc=[8] * 4, nb=2).state_dict()
        pretrained = load_pretrained(saved(state, tmp_path))
        assert (pretrained.scale, pretrained.in_channels, pretrained.out_channels) == (1, 3, 3)
        descriptor = MAIN_REGISTRY.load(dict(state))
        for x in (image(3, 13), image(16, 8)):
            with torch.no_grad():
                given = pretrained.network(x)
            assert torch.equal(given, torch.cat([descriptor(one).clone() for one in x.split(1)]))

    def test_taps_features_and_cost_work(self, tmp_path):
        pretrained = load_pretrained(saved(esrgan(2).state_dict(), tmp_path))
        with torch.no_grad(), FeatureHooks(pretrained.network, ["model.model.0"]) as features:
            pretrained.network(image())
        # A later loss must be able to learn from it: not so for tensors of inference mode.
        (features["model.model.0"] * nn.Parameter(torch.ones(()))).sum().backward()
        assert count_multiply_adds(pretrained.network, (3, 8, 8)) > 0

    def test_its_gradients_reach_the_weights_in_training(self, tmp_path):
        network = load_pretrained(saved(esrgan(2).state_dict(), tmp_path)).network.requires_grad_(True).train()
        (network(image()) - 5).square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_what_was_trained_here_is_recognised_again(self, tmp_path):
        network = load_pretrained(saved(esrgan(2).state_dict(), tmp_path)).network
        content = {"params": network.state_dict(), "network": {"type": "auto", "scale": 2}}
        again = load_pretrained(saved(content, tmp_path, "again.pth"))
        assert torch.equal(again.network(image()), network(image()))

    def test_networks_for_other_purposes_are_refused(self, tmp_path):
        state = published.spandrel_architecture("LaMa").LaMa(in_nc=4, out_nc=3).state_dict()
        with pytest.raises(CheckpointError, match="LaMa, for Inpainting"):
            load_pretrained(saved(state, tmp_path))


def test_a_wrong_scale_is_named(tmp_path):
    path = saved(published.edsr(scale=2).state_dict(), tmp_path)
    assert network_for(None, path, scale=2)[0](image()).shape[-1] == 18
    with pytest.raises(CheckpointError, match=r"wrong scale: it is EDSR for x2, the options' scale is 4"):
        network_for({"type": "auto"}, path, scale=4)


def test_a_discriminator_is_told_by_its_name(tmp_path):
    block = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
    torch.save({"params": build_network(block).state_dict()}, tmp_path / "net_d_5000.pth")
    with pytest.raises(CheckpointError, match=r"is a discriminator by its name; give the network, net_g_\*\.pth"):
        load_pretrained(tmp_path / "net_d_5000.pth")


def test_what_is_not_recognised_is_told_with_where_else_tensors_lie_and_the_way_that_is_left(tmp_path):
    state = nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()
    content = {"params": state, "critic": {"w": torch.ones(1)}, "step": 3, "ema": {"v": torch.ones(1)}}
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(saved(content, tmp_path))
    message = str(caught.value)
    assert (
        "2 weights under 'params' begin with 0.weight, 0.bias; it has further tensors under 'critic', 'ema'" in message
    )
    assert "authors' code as an architecture file (docs/adding_a_network.md)" in message


def test_what_nobody_knows_is_refused_in_one_line(tmp_path):
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)).state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(saved(state, tmp_path))
    message = str(caught.value)
    assert "\n" not in message and "4 weights at its top begin with 0.weight, 0.bias, 1.weight" in message
    with pytest.raises(OptionsError, match="no network is called"):
        network_for({"type": "Nothing"}, tmp_path / "net.pth")


def _copying(bias: float, slope: float) -> torch.nn.Module:
    """An IMDN that enlarges by repetition if its leaky ReLU, at red + bias, has this slope."""
    network = build_network({"type": "IMDN", "num_feat": 4, "num_block": 1, "upscale": 2, "simplified": True})
    colours = range(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.fea_conv.weight[colours, colours, 1, 1] = 1
        network.IMDB1.c1.weight[0, 0, 1, 1], network.IMDB1.c1.bias[0] = 1, bias
        network.IMDB1.c5.weight[0, 0], network.IMDB1.c5.bias[0] = 1 / slope, -bias
        network.LR_conv.weight[colours, colours, 1, 1] = 1
        for colour, copies in ((0, 3), (1, 2), (2, 2)):
            network.upsampler[0].weight[4 * colour : 4 * colour + 4, colour, 1, 1] = 1 / copies
    return network


@pytest.mark.parametrize(("bias", "slope", "img_range"), [(-30.0, 1.0, 255.0), (-100.0, 0.05, 1.0)])
def test_a_range_that_no_key_shows_is_tried_on_a_picture(tmp_path, bias, slope, img_range) -> None:
    torch.save(_copying(bias, slope).state_dict(), tmp_path / "net.pth")
    pretrained = load_pretrained(tmp_path / "net.pth")
    assert pretrained.block["img_range"] == img_range
    assert ("in [0, 255]: with 1, as published" in pretrained.remark) == (img_range == 255)
    assert ("published: img_range 1" in pretrained.remark) == (img_range == 1)
    x = 0.3 + 0.4 * torch.rand(1, 3, 6, 5)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(pretrained.network(x), repeated, atol=1e-4)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "SAFMN", "num_feat": 20, "num_block": 1, "ffn_scale": 1.33, "upscale": 2},
        {"type": "RLFN", "num_feat": 8, "mid_channels": 8, "num_block": 1, "upscale": 2, "img_range": 1.0},
        {"type": "LKDN", "num_feat": 8, "num_atten": 8, "num_block": 1, "upscale": 2},
        {"type": "PAN", "num_feat": 8, "num_block": 1, "upscale": 3},
        {"type": "CARN", "num_feat": 8, "scales": [2, 4], "upscale": 4},
    ],
    ids=lambda block: block["type"],
)
def test_small_networks_are_built_by_the_options_that_our_training_recorded(tmp_path, block) -> None:
    torch.save({"params": build_network(block).state_dict(), "network": block}, tmp_path / "net.pth")
    pretrained = load_pretrained(tmp_path / "net.pth")
    assert (pretrained.block, pretrained.scale, pretrained.remark) == (block, block["upscale"], None)

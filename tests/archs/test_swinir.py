from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from basicsr.archs.arch_util import pad_to_multiple
from basicsr.archs.swinir_arch import SwinIR, shifted_window_mask, window_partition, window_reverse
from basicsr.utils.errors import DataError, OptionsError

TINY = {
    "img_size": 8,
    "embed_dim": 12,
    "depths": (2, 2),
    "num_heads": (2, 3),
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
}


def swinir(seed: int = 0, **changes) -> SwinIR:
    torch.manual_seed(seed)
    network = SwinIR(**{**TINY, "upscale": 2, "upsampler": "pixelshuffle", **changes}).eval()
    # As initialised, attention is almost uniform and a wrong mask would hardly show.
    for name, parameter in network.named_parameters():
        if "relative_position_bias_table" in name or "qkv" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return network


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def reflected(size: int, length: int) -> list[int]:
    """The index of the source pixel for each position: 0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ..."""
    period = max(2 * (size - 1), 1)
    return [min(position % period, period - position % period) if size > 1 else 0 for position in range(length)]


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (9, 4), (3, 2), (2, 9), (1, 6), (1, 1)])
def test_padding_repeats_reflection_until_the_multiple_is_reached(size: tuple[int, int]) -> None:
    height, width = (math.ceil(side / 8) * 8 for side in size)
    x = image(*size)
    wanted = x[:, :, reflected(size[0], height)][:, :, :, reflected(size[1], width)]
    assert torch.equal(pad_to_multiple(x, 8), wanted)


@pytest.mark.parametrize(
    ("upsampler", "upscale", "scale"),
    [("pixelshuffle", 2, 2), ("pixelshuffledirect", 3, 3), ("nearest+conv", 4, 4), ("", 2, 1), (None, 1, 1)],
)
@pytest.mark.parametrize("size", [(6, 11), (3, 1)])
def test_any_size_is_padded_inside_and_cropped_again(
    upsampler: str | None, upscale: int, scale: int, size: tuple[int, int]
) -> None:
    network = swinir(upsampler=upsampler, upscale=upscale)
    x = image(*size)
    with torch.no_grad():
        output = network(x)
        padded = network(pad_to_multiple(x, 4))
    assert output.shape == (2, 3, size[0] * scale, size[1] * scale)
    assert torch.equal(output, padded[..., : output.shape[-2], : output.shape[-1]])


def test_weights_of_another_img_size_load_and_give_the_same_output() -> None:
    small, large = swinir(img_size=8), swinir(img_size=(12, 16), seed=1)
    masks = {name: t.clone() for name, t in large.state_dict().items() if name.endswith("attn_mask")}
    large.load_state_dict(small.state_dict())
    assert masks
    assert all(torch.equal(large.state_dict()[name], mask) for name, mask in masks.items())
    for size in [(8, 8), (12, 16), (8, 20)]:
        with torch.no_grad():
            torch.testing.assert_close(large(image(*size)), small(image(*size)), rtol=1e-5, atol=1e-6)


def test_weights_of_another_window_size_are_refused() -> None:
    with pytest.raises(RuntimeError, match="relative_position_bias_table"):
        swinir(window_size=2).load_state_dict(swinir().state_dict())


def test_shifted_windows_separate_pixels_that_were_not_neighbours() -> None:
    size, window, shift = (8, 12), 4, 2
    mask = shifted_window_mask(size, window, shift)
    position = torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"), dim=-1)
    rolled = torch.roll(position, (-shift, -shift), (0, 1))[None]
    places = window_partition(rolled, window)
    apart = (places[:, :, None] - places[:, None, :]).abs().amax(dim=-1)
    assert torch.equal(mask == 0, apart < window)
    assert set(mask.unique().tolist()) == {0.0, -100.0}


def test_windows_put_together_again_give_the_image() -> None:
    x = torch.arange(2 * 8 * 12 * 3).view(2, 8, 12, 3)
    windows = window_partition(x, 4)
    assert windows.shape == (2 * 2 * 3, 16, 3)
    assert torch.equal(windows[1], x[0, :4, 4:8].reshape(16, 3))
    assert torch.equal(window_reverse(windows, 4, 8, 12), x)


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    gradients = []
    for use_checkpoint in (False, True):
        network = swinir(use_checkpoint=use_checkpoint).train()
        network(image(6, 9)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_leaves_whole_samples_out_in_training_only() -> None:
    network = swinir(drop_path_rate=0.9, depths=(3,), num_heads=(2,))
    block = network.layers[0].residual_group.blocks[-1]
    x = torch.ones(400, 2)
    dropped = block.drop_path.train()(x)
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.unique().tolist() == pytest.approx([0.0, 10.0])
    assert 10 <= (dropped[:, 0] > 0).sum() <= 80
    assert torch.equal(block.drop_path.eval()(x), x)
    assert network.layers[0].residual_group.blocks[0].drop_path.drop_prob == 0
    assert network.layers[0].residual_group.blocks[1].drop_path.drop_prob == pytest.approx(0.45)


def test_an_absolute_position_embedding_takes_its_own_size_only() -> None:
    network = swinir(ape=True)
    assert network(image(7, 8)).shape == (2, 3, 14, 16)
    with pytest.raises(DataError, match=r"takes 8x8 images, got 12x8: change img_size"):
        network(image(9, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": (2,)}, "depths: has 2 entries and num_heads 1"),
        ({"num_heads": (2, 5)}, "embed_dim: 12 is not a multiple of num_heads 5"),
        (
            {"upsampler": "bicubic"},
            "upsampler: input should be 'pixelshuffle', 'pixelshuffledirect'",
        ),
        ({"upsampler": "nearest+conv", "upscale": 2}, "upscale: 2 is not supported by upsampler 'nearest"),
        ({"resi_connection": "2conv"}, "resi_connection: input should be '1conv' or '3conv', got '2conv'"),
        ({"upscale": 5}, "upscale: 5 is not supported: give a power of two or 3"),
    ],
)
def test_unsupported_arguments_are_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(OptionsError) as raised:
        swinir(**changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)

"""Steps of a degradation: places, random choices, workers."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.config.load import load_options
from basicsr.data import build_dataset
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.degradations import blur_kernels
from basicsr.data.degradations.base import Chain
from basicsr.data.degradations.real_esrgan import RealESRGAN
from basicsr.data.loading import TrainLoader
from basicsr.data.sampling import KeySampler
from basicsr.utils.errors import OptionsError
from basicsr.utils.randomness import generator
from basicsr.utils.registry import DEGRADATION_REGISTRY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images of smooth colours with noise."""
    folder = tmp_path_factory.mktemp("HR")
    for number in range(3):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
        img = cv2.resize(coarse, (75, 59), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / f"{number}.png"), img)
    return folder


def dataset(folder: Path, degradation, scale: int = 2, phase: str = "train", **options):
    block = {"type": "PairedImageDataset", "dataroot_gt": str(folder), "degradation": degradation, "scale": scale}
    return build_dataset({**block, "phase": phase, "gt_size": 16, **options})


CHAINS = {
    "noise": (1, {"type": "GaussianNoise", "sigma": [0, 55]}),
    "poisson": (1, {"type": "PoissonNoise", "strength": [0.5, 2.0], "gray_prob": 0.5}),
    "jpeg": (1, {"type": "Jpeg", "quality": [10, 90]}),
    "own jpeg": (1, {"type": "Jpeg", "quality": 25, "codec": "torch"}),
    "random bicubic": (2, {"type": "RandomBicubic", "factors": [1.5, 3]}),
    "many": (
        2,
        [
            {"type": "Blur", "sigma": [0.5, 2.0], "kernel_size": 9, "kernel_list": ["iso", "plateau_aniso"]},
            {"type": "MatlabBicubic"},
            {"type": "GaussianNoise", "sigma": 10, "rounds": True},
            {"type": "Jpeg", "quality": [40, 95]},
            {"type": "EightBits"},
        ],
    ),
    "real_esrgan": (2, {"type": "RealESRGAN"}),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("color", [None, "gray"])
def test_lr_has_the_size_and_resembles_hr(folder, name, color):
    scale, chain = CHAINS[name]
    for phase in ("train", "val"):
        sample = dataset(folder, chain, scale, phase, color=color)[0]
        assert sample["lq"].shape == (1 if color else 3, *(side // scale for side in sample["gt"].shape[1:]))
        small = torch.nn.functional.avg_pool2d(sample["gt"][None], scale)[0]
        if phase == "val":
            assert np.corrcoef(sample["lq"].flatten(), small.flatten())[0, 1] > 0.7


@pytest.mark.parametrize("name", CHAINS)
def test_batches_are_equal_with_and_without_workers(folder, name):
    scale, chain = CHAINS[name]

    def batches(workers: int):
        sampler = KeySampler(num_samples=3, batch_size=4, seed=5, total_iterations=3)
        return [batch for (batch,) in TrainLoader(dataset(folder, chain, scale), sampler, num_workers=workers)]

    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    alone, four = batches(0), batches(4)
    assert all(torch.equal(one.lq, other.lq) for one, other in zip(alone, four, strict=True))
    assert not torch.equal(alone[0].lq, alone[1].lq)
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()


@pytest.mark.parametrize("name", CHAINS)
def test_in_validation_an_image_is_degraded_alike_whatever_else_is_there(folder, tmp_path, name):
    scale, chain = CHAINS[name]
    (tmp_path / "1.png").write_bytes((folder / "1.png").read_bytes())
    alone, among = dataset(tmp_path, chain, scale, "val"), dataset(folder, chain, scale, "val")
    first, again, other = (load_sample(alone, SampleKey(0, seed)) for seed in (0, 1, 2))
    assert torch.equal(first["lq"], load_sample(among, SampleKey(1, 9))["lq"])
    assert torch.equal(first["lq"], again["lq"]) and torch.equal(first["lq"], other["lq"])


@pytest.mark.parametrize(
    "chain",
    [
        {"type": "Jpeg", "quality": 30},
        {"type": "Jpeg", "quality": 30, "codec": "torch"},
        [{"type": "Blur", "sigma": [1.3, 1.3], "kernel_size": 5}, {"type": "EightBits"}],
    ],
)
def test_a_patch_is_what_the_whole_image_has_at_its_place(folder, chain):
    options = {"use_hflip": False, "use_rot": False}
    patches, whole = dataset(folder, chain, 1, **options), dataset(folder, chain, 1, "val")[0]
    for seed in range(6):
        patch = load_sample(patches, SampleKey(0, seed))
        places = [
            (top, left)
            for top in range(59 - 15)
            for left in range(75 - 15)
            if torch.equal(whole["gt"][:, top : top + 16, left : left + 16], patch["gt"])
        ]
        (top, left) = places[0]
        at_place = whole["lq"][:, top : top + 16, left : left + 16]
        assert float((patch["lq"] - at_place).abs().max()) < 1.5 / 255  # of the blur's sums, rounding
        assert float((patch["lq"] != at_place).float().mean()) < 0.01


def test_noise_has_its_standard_deviation_and_is_not_clipped(folder):
    flat = np.full((300, 300, 3), 250, np.uint8)
    noisy = Chain({"type": "GaussianNoise", "sigma": 25}, 1)(flat, (0, 0), generator(0, "noise"))
    noise = (noisy - np.float32(250 / 255)) * 255
    assert noise.std() == pytest.approx(25, rel=0.01) and abs(noise.mean()) < 0.3 and noisy.max() > 1
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    gray = Chain({"type": "GaussianNoise", "sigma": 25, "gray_prob": 1}, 1)(flat, (0, 0), generator(0, "noise"))
    assert (gray[..., 0] == gray[..., 1]).all()
    stored = Chain({"type": "GaussianNoise", "sigma": 25, "rounds": True}, 1)(flat, (0, 0), generator(0, "noise"))
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, np.rint(np.clip(noisy, 0, 1) * 255))


def test_random_bicubic_is_bicubic_at_its_own_factor(folder):
    step = Chain({"type": "RandomBicubic", "factors": [2, 2]}, 2)
    bicubic = Chain({"type": "MatlabBicubic"}, 2)
    img = cv2.imread(str(folder / "0.png"))[:48, :64]
    around = [np.pad(img, ((chain.margin,) * 2, (chain.margin,) * 2, (0, 0)), "symmetric") for chain in (step, bicubic)]
    results = [
        chain(pixels, (-chain.margin, -chain.margin), generator(0, "step"))
        for chain, pixels in zip((step, bicubic), around, strict=True)
    ]
    assert np.array_equal(*results)


def within_five_sigma(count: int, chance: float, number: int) -> bool:
    return abs(count - chance * number) < 5 * math.sqrt(number * chance * (1 - chance))


def test_real_esrgans_choices_come_as_often_as_published(monkeypatch):
    kinds, real = [], blur_kernels.gaussian_kernel

    def noting(side, sigma_x, sigma_y, theta=0.0, beta=1.0, *, plateau=False):
        kinds.append((side, sigma_x, sigma_y, theta, beta, plateau))
        return real(side, sigma_x, sigma_y, theta, beta, plateau=plateau)

    monkeypatch.setattr(blur_kernels, "gaussian_kernel", noting)
    number, rng = 1500, np.random.default_rng(11)
    step = RealESRGAN(scale=4)
    drawn = [step.draw(40, 40, 3, rng) for _ in range(number)]
    first, second = ([one.rounds[index] for one in drawn] for index in (0, 1))
    events = [
        ([one.size[0] > 40 for one in first], 0.2 * 59 / 60),  # sizes are rounded down
        ([one.size[0] == 40 for one in first], 0.1 + 0.2 / 20),
        ([one.noise.poisson for one in first], 0.5),
        ([one.noise.numbers.shape[0] == 1 for one in second], 0.4),
        ([one.kernel is None for one in second], 0.2),
        ([one.sinc is None for one in drawn], 0.2),
        ([one.jpeg_last for one in drawn], 0.5),
        ([one.quality < 46.25 for one in first], 0.25),
        ([one.mode == "area" for one in drawn], 1 / 3),
        ([one.size[0] < 10 for one in second], 0.4),
        ([one.noise.strength < 0.05 + 2.95 / 2 for one in first if one.noise.poisson], 0.5),
        ([one.noise.strength < 13 for one in second if not one.noise.poisson], 0.5),
        ([kind[0] == 7 for kind in kinds], 1 / 8),
        ([kind[5] for kind in kinds], 0.15),
        ([kind[3] != 0 for kind in kinds], 0.31),
        ([kind[4] != 1 for kind in kinds], 0.15 + 0.15 / 2),  # beta of half the plateaus is 1, as betap begins at 1
        ([kind[4] < 1 for kind in kinds], 0.15 / 2),
    ]
    for index, (happened, chance) in enumerate(events):
        assert within_five_sigma(sum(happened), chance, len(happened)), (index, sum(happened) / len(happened), chance)
    without_sinc = number * 0.9 + number * 0.8 * 0.9
    assert abs(len(kinds) - without_sinc) < 5 * math.sqrt(number * 0.3)
    assert all(0.2 <= kind[1] <= 3 and 7 <= kind[0] <= 21 and kind[0] % 2 == 1 for kind in kinds)


def test_orders_of_the_last_two_operations_differ(folder):
    step = RealESRGAN(scale=2, final_sinc_prob=1.0)
    image = torch.from_numpy(
        cv2.imread(str(folder / "0.png"))[:48, :64].transpose(2, 0, 1) / np.float32(255)
    ).contiguous()
    drawn = step.draw(48, 64, 3, np.random.default_rng(0))
    results = [step.apply(image, drawn.__class__(drawn.rounds, drawn.mode, drawn.sinc, last)) for last in (True, False)]
    assert results[0].shape == (3, 24, 32) and results[0].dtype == torch.uint8
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    "scale, chain, message",
    [
        (1, {"type": "GaussianNoise", "sigma": [30, 10]}, r"sigma: must have the lower limit first, got \[30, 10\]"),
        (1, {"type": "GaussianNoise"}, "sigma: is required"),
        (1, {"type": "Jpeg", "quality": 0}, "quality.*greater than or equal to 1"),
        (2, {"type": "GaussianNoise", "sigma": 5}, "does not shrink, and the scale is 2; write a list"),
        (2, [{"type": "MatlabBicubic"}, {"type": "RealESRGAN"}], "shrinks more than once"),
        (2, [{"type": "Blur", "sigma": [1, 2], "kernel_size": 6}, {"type": "MatlabBicubic"}], "must be odd, got 6"),
        (2, {"type": "RealESRGAN", "kernel_list": ["iso"]}, "kernel_prob: must have an entry for each of kernel_list"),
        (2, {"type": "RealESRGAN", "jpeg_range": [95, 30]}, "jpeg_range: must have the lower limit first"),
        (2, {"type": "RealESRGAN", "resize_prob": [0, 0, 0]}, "resize_prob: must not be all 0"),
        (2, {"type": "RealESRGAN", "resize_range2": [0.2, 0.9]}, "resize_range2: must have 1 between its limits"),
        (2, {"type": "RealESRGAN", "scale": 3}, "scale: unknown key"),
        (2, {"type": "RandomBicubic", "factors": [0.5, 3]}, "factors.*greater than or equal to 1"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(mcadkd, scale, chain, message):
    options = {**mcadkd, "scale": scale}
    train = {**mcadkd["datasets"]["train"], "degradation": chain}
    del train["dataroot_lq"]
    options["datasets"] = {"train": train}
    with pytest.raises(OptionsError, match=rf"datasets\.train\.degradation.*{message}"):
        load_options(options, training=True, paths=False)


def test_basicsrs_functions_for_kernels_follow_the_global_generator():
    from basicsr.data.degradations import circular_lowpass_kernel, random_mixed_kernels

    drawn = []
    for _ in range(2):
        np.random.seed(7)
        drawn.append([random_mixed_kernels(["iso", "plateau_aniso"], [0.5, 0.5], 15) for _ in range(3)])
    assert np.array_equal(*drawn) and not np.array_equal(drawn[0][0], drawn[0][1])
    assert circular_lowpass_kernel(2.0, 7, pad_to=21).shape == (21, 21)


def test_every_step_is_tried_here():
    tried = {block["type"] for _, chain in CHAINS.values() for block in (chain if isinstance(chain, list) else [chain])}
    assert tried | {"MatlabBicubic"} == set(DEGRADATION_REGISTRY.names())

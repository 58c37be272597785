"""Images of many bands are learned, evaluated, saved and shown; what is of colours only is refused before the run."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
import tifffile
import torch
from support.training import changed, without_teacher

from basicsr.config.load import load_options
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.engine.teacher_cache import CacheSettings, make_cache
from basicsr.files.band_files import as_type, bands_from_bytes, write_bands
from basicsr.test import test_pipeline as evaluate_file
from basicsr.train import train_pipeline
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.matlab_functions import imresize, imresize_integer
from basicsr.weights.recognise import load_pretrained

BANDS = 5
STORAGE = {"type": "bands", "channels": BANDS}


def write_pairs(root, dtype=np.uint16, suffix=".tif", count=3, size=24):
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.uniform(0, 1, (6, 6, BANDS)).astype(np.float32)
        hr = cv2.resize(coarse, (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        lr = hr.reshape(size, 2, size, 2, BANDS).mean((1, 3))
        for role, values in (("HR", hr), ("LR", lr)):
            write_bands(root / role / f"{number}{suffix}", as_type(values, np.dtype(dtype)))
    return {"dataroot_gt": str(root / "HR"), "dataroot_lq": str(root / "LR"), "io_backend": STORAGE}


@pytest.fixture
def options(mcadkd, tmp_path):
    data = {**write_pairs(tmp_path / "bands"), "filename_tmpl": "{}"}
    channels = {"num_in_ch": BANDS, "num_out_ch": BANDS, "rgb_mean": [0.5] * BANDS, "img_range": 1.0}
    options = without_teacher(mcadkd, train__optim_d=None, train__ema_decay=None, train__total_iter=2)
    return changed(
        options,
        datasets__train={**options["datasets"]["train"], **data},
        datasets__val={**options["datasets"]["val"], **data},
        network_g={**options["network_g"], **channels},
        val={
            "val_freq": 2,
            "save_img": True,
            "tile": 16,
            "metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}},
        },
        logger__use_tb_logger=True,
    )


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_patches_are_cut_and_turned_alike_with_all_bands_in_their_order(tmp_path, dtype, suffix):
    data = write_pairs(tmp_path, dtype, suffix)
    dataset = PairedImageDataset(**data, scale=2, phase="train", gt_size=16)
    whole = PairedImageDataset(**data, scale=2, phase="val")
    stored = bands_from_bytes((tmp_path / f"HR/1{suffix}").read_bytes(), BANDS, "image")
    full = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    gt = whole[1]["gt"]
    np.testing.assert_array_equal(gt, np.moveaxis(stored.astype(np.float32) / np.float32(full), -1, 0))
    lq = whole[1]["lq"]
    for seed in range(6):
        sample = dataset.load(1, np.random.default_rng(seed))
        assert sample["lq"].shape == (BANDS, 8, 8) and sample["gt"].shape == (BANDS, 16, 16)
        torch.testing.assert_close(
            torch.nn.functional.avg_pool2d(sample["gt"], 2),
            sample["lq"],
            atol=1.01 / full if full > 1 else 1e-6,
            rtol=0,
        )
        same = [(lq[0] == sample["lq"][0, 0, 0]).nonzero(), (lq[4] == sample["lq"][4, 0, 0]).nonzero()]
        shared = {tuple(place.tolist()) for place in same[0]} & {tuple(place.tolist()) for place in same[1]}
        assert shared, "a pixel has its bands together"
    pixels = dataset.load(0, np.random.default_rng(0), pixels=True)["gt"]
    assert pixels.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)


def test_a_run_learns_measures_saves_and_shows_all_bands(options, tmp_path):
    best = train_pipeline(options, root=tmp_path).best["val"]
    folder = tmp_path / "experiments/tiny"
    network = load_pretrained(folder / "models/net_g_latest.pth").network
    psnr = []
    for number in range(3):
        lr, hr = (tifffile.imread(tmp_path / f"bands/{role}/{number}.tif") for role in ("LR", "HR"))
        with torch.inference_mode():
            output = network(torch.from_numpy(lr.astype(np.float32) / 65535)[None])[0].clamp(0, 1).numpy()
        saved = tifffile.imread(folder / f"visualization/val/{number}/{number}_2.tif")
        assert saved.dtype == np.uint16 and saved.shape == (BANDS, 48, 48)
        np.testing.assert_allclose(saved / 65535, output, atol=2e-5)
        shown = cv2.imread(str(folder / f"visualization/val/{number}/{number}_2.png"))
        np.testing.assert_allclose(shown[..., ::-1] / 255, np.moveaxis(output[:3], 0, -1), atol=0.5 / 255 + 1e-6)
        levels = (np.rint(values * 255) for values in (output, hr / 65535))
        inner = [values[:, 2:-2, 2:-2] for values in levels]
        psnr.append(10 * np.log10(255**2 / np.mean((inner[0] - inner[1]) ** 2)))
    assert best["psnr"]["value"] == pytest.approx(np.mean(psnr), abs=1e-3)

    rows = {"bicubic": {"type": "bicubic"}, "ours": {"path": str(folder / "models/net_g_latest.pth")}}
    test = {"name": "table", "scale": 2, "num_gpu": 0, "networks": rows, "val": {"metrics": options["val"]["metrics"]}}
    data = {key: value for key, value in options["datasets"]["val"].items() if key != "name"}
    evaluate_file(
        {**test, "datasets": {"test": {**data, "name": "set"}}, "report": {"speed": False, "plots": False}},
        root=tmp_path,
    )
    results = tmp_path / "results/table"
    table = list(csv.DictReader((results / "metrics.csv").open()))
    assert [row["metric"] for row in table] == ["psnr", "ssim", "seconds"] * 2 * 3
    assert (results / "report.html").is_file()
    assert tifffile.imread(results / "visualization/ours/set/0_table.tif").shape == (BANDS, 48, 48)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"network_g__num_in_ch": 4, "network_g__num_out_ch": 4}, OptionsError, "rgb_mean"),
        (
            {
                "network_g": {
                    "type": "EDSR",
                    "num_in_ch": 3,
                    "num_out_ch": 3,
                    "num_feat": 4,
                    "num_block": 1,
                    "upscale": 2,
                }
            },
            OptionsError,
            "takes 3 channels, datasets.train gives 5",
        ),
        ({"val__metrics__psnr__test_y_channel": True}, OptionsError, "val.* has 5 channels, of which there is no luma"),
        ({"datasets__train__color": "gray"}, OptionsError, "images of 5 bands have none"),
        ({"datasets__train__io_backend__channels": 3}, OptionsError, "3 channels are colours"),
        ({"datasets__train__io_backend__channels": 17}, OptionsError, "channels: input should be less than or equal"),
        ({"datasets__train__io_backend__channels": 6}, DataError, "it has 5 channels, expected are 6"),
        (
            {
                "train__perceptual_opt": {
                    "type": "PerceptualLoss",
                    "layer_weights": {"conv1_1": 1},
                    "vgg_weights": "random",
                }
            },
            OptionsError,
            "PerceptualLoss: the VGG needs gray or colour images",
        ),
        ({"datasets__train__mean": [0.5] * 3}, OptionsError, "mean must have 5 entries"),
    ],
)
def test_what_does_not_make_sense_is_refused_before_anything_is_written(options, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train_pipeline(changed(options, **changes), root=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("**/models"))


def test_lr_images_are_made_of_all_bands(tmp_path):
    write_pairs(tmp_path)
    made = {"dataroot_gt": str(tmp_path / "HR"), "io_backend": STORAGE, "scale": 2}
    whole = PairedImageDataset(**made, phase="val")[0]
    bands = [imresize_integer(tifffile.imread(tmp_path / "HR/0.tif")[band], 0.5) for band in range(BANDS)]
    np.testing.assert_array_equal(whole["lq"], np.stack(bands).astype(np.float32) / np.float32(65535))
    blur = {"type": "Blur", "sigma": [0.5, 1.0], "kernel_size": 7}
    for step in ({"type": "GaussianNoise", "sigma": 5}, {"type": "PoissonNoise", "strength": 1.0}, blur):
        steps = [{"type": "MatlabBicubic"}, step]
        dataset = PairedImageDataset(**made, phase="train", gt_size=16, degradation=steps, extend_small=True)
        assert dataset.load(0, np.random.default_rng(0))["lq"].shape == (BANDS, 8, 8)
    for of_colours in ([{"type": "MatlabBicubic"}, {"type": "Jpeg", "quality": 50}], {"type": "RealESRGAN"}):
        with pytest.raises(OptionsError, match=r"is of gray and RGB images, and these have 5 bands; remove it"):
            PairedImageDataset(**made, phase="train", gt_size=16, degradation=of_colours)


def test_lr_images_of_numbers_with_a_fraction_stay_within_the_range(tmp_path):
    edges = np.zeros((24, 24, BANDS), np.float32)
    edges[:, 12:] = 1  # where bicubic overshoots on both sides
    (tmp_path / "HR").mkdir()
    np.save(tmp_path / "HR/0.npy", edges)
    lr = PairedImageDataset(dataroot_gt=str(tmp_path / "HR"), io_backend=STORAGE, scale=2, phase="val")[0]["lq"]
    expected = imresize(edges.astype(np.float64), 0.5)
    assert expected.min() < 0 and expected.max() > 1
    np.testing.assert_allclose(lr.numpy(), np.moveaxis(expected.clip(0, 1), -1, 0), atol=1e-6)


def test_arrays_are_found_in_folders_below_and_by_patterns_and_pictures_are_not_passed_over(tmp_path):
    data = write_pairs(tmp_path / "a", suffix=".npy", count=2)
    many = PairedImageDataset(
        **{**data, "dataroot_gt": str(tmp_path / "*/HR"), "dataroot_lq": str(tmp_path / "*/LR")}, scale=2, phase="val"
    )
    assert len(many) == 2 and many.stored_images().roots["gt"].form(many.paths[0]["gt_path"]) == (".npy", np.uint16)
    assert list(many.stored_images().roots["gt"].warnings(2)) == []
    cv2.imwrite(str(tmp_path / "a/LR/2.png"), np.zeros((24, 24, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "a/HR/2.png"), np.zeros((48, 48, 3), np.uint8))
    dataset = PairedImageDataset(**data, scale=2, phase="val")
    with pytest.raises(DataError, match=r"2\.png: it is a PNG file; bands are read from TIFF and \.npy files"):
        dataset[2]


def test_the_teachers_cache_holds_colours_only(options, tmp_path):
    kd = changed(options, model_type="KDModel", network_t=options["network_g"])
    with pytest.raises(OptionsError, match=r"has RGB .*, and images of io_backend bands are no RGB; remove it"):
        train_pipeline(changed(kd, datasets__train__teacher_cache=str(tmp_path)), root=tmp_path)
    kd["train"]["resp_kd_opt"] = {"type": "L1Loss"}
    loaded = load_options(kd, training=True, root=tmp_path)
    with pytest.raises(OptionsError, match=r"has RGB .*, these images have 5 bands; train without one"):
        make_cache(loaded, CacheSettings(torch.device("cpu")), None, print)

"""Options of test.py: several scales in one file, and what is left out where it is not there."""

from __future__ import annotations

import pytest
import torch

from basicsr.config.load import load_options, load_test_options
from basicsr.utils.errors import OptionsError


@pytest.fixture
def benchmarks(tmp_path):
    """Options of two datasets at two scales, of which `second` has no LR images at x3; one network is there."""
    for folder in ("first/HR", "first/X2", "first/X3", "second/HR", "second/X2"):
        (tmp_path / folder).mkdir(parents=True)
    torch.save({}, tmp_path / "student_x2_0a1b.pth")
    torch.save({}, tmp_path / "student_x3_2c3d.pth")
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": "{scale}"}
    return {
        "name": "both",
        "scale": [2, 3],
        "skip_missing": True,
        "datasets": {
            f"test_{name}": {
                "type": "PairedImageDataset",
                "name": name,
                "dataroot_gt": f"{tmp_path}/{name}/HR",
                "dataroot_lq": f"{tmp_path}/{name}/X{{scale}}",
                "filename_tmpl": "{}x{scale}",
                "io_backend": {"type": "disk"},
            }
            for name in ("first", "second")
        },
        "networks": {
            "bicubic": {"type": "bicubic"},
            "student": {"network": network, "path": f"{tmp_path}/student_x{{scale}}_*.pth"},
            "teacher": {"network": network, "path": f"{tmp_path}/teacher_x{{scale}}.pth"},
        },
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": "{scale}"}}},
    }


def test_each_scale_gets_options_of_its_own_with_the_scale_filled_in(benchmarks, tmp_path):
    two, three = load_test_options(benchmarks)
    assert (two.scale, three.scale) == (2, 3)
    assert two.datasets["test_first"].arguments["dataroot_lq"] == f"{tmp_path}/first/X2"
    assert three.datasets["test_first"].arguments["filename_tmpl"] == "{}x3"
    assert three.networks["student"].network["upscale"] == 3
    assert three.val.metrics["psnr"]["crop_border"] == 3


def test_wildcards_find_the_one_file_that_matches(benchmarks, tmp_path):
    assert load_test_options(benchmarks)[0].networks["student"].path == f"{tmp_path}/student_x2_0a1b.pth"
    torch.save({}, tmp_path / "student_x2_ffff.pth")
    with pytest.raises(OptionsError, match=r"networks\.student\.path: .* matches 2 files, .*0a1b\.pth and .*name one"):
        load_test_options(benchmarks)


def test_what_is_missing_is_left_out_and_named(benchmarks):
    two, three = load_test_options(benchmarks)
    assert list(two.datasets) == ["test_first", "test_second"]
    assert list(three.datasets) == ["test_first"]
    assert list(two.networks) == list(three.networks) == ["bicubic", "student"]
    assert [line.split(":")[0] for line in two.skipped] == ["teacher"]
    assert [line.split(":")[0] for line in three.skipped] == ["second", "teacher"]
    assert "there is no folder" in three.skipped[0] and "there is no file" in three.skipped[1]


def test_a_region_must_be_of_a_dataset_of_the_options_even_of_one_that_is_not_there(benchmarks):
    def load(dataset):
        region = {"dataset": dataset, "image": "a", "x": 0, "y": 0}
        return load_test_options({**benchmarks, "report": {"regions": [region]}})

    assert load("first") and load("second")
    with pytest.raises(OptionsError, match=r"report\.regions\[0\]\.dataset: no dataset is named 'Set55'; there are: "):
        load("Set55")


def test_without_skip_missing_everything_missing_is_a_mistake(benchmarks):
    with pytest.raises(OptionsError) as caught:
        load_test_options({**benchmarks, "skip_missing": False})
    message = str(caught.value)
    for key in ("datasets.test_second.dataroot_lq: there is no folder", "networks.teacher.path: there is no file"):
        assert key in message


def test_a_scale_without_any_data_is_left_out_but_not_all_scales(benchmarks):
    loaded = load_test_options({**benchmarks, "scale": [2, 4]})
    assert [bool(options.datasets) for options in loaded] == [True, False]
    assert len(loaded[1].skipped) == 4
    with pytest.raises(
        OptionsError,
        match="datasets: none of them is there at x4: first: there is no folder",
    ):
        load_test_options({**benchmarks, "scale": [4, 8]})
    with pytest.raises(OptionsError, match="datasets: none of them is there"):
        load_test_options({**benchmarks, "scale": 4})


@pytest.mark.parametrize(
    "scale",
    [
        [],
        [2, 2],
        [2, 0],
        [2, "two"],
        [2, True],
        [[2]],
    ],
)
def test_a_wrong_list_of_scales_is_refused(benchmarks, scale):
    with pytest.raises(OptionsError, match="scale: a list of scales must hold whole numbers of at least 1") as caught:
        load_test_options({**benchmarks, "scale": scale})
    assert "one mistake" in str(caught.value)


def test_scales_share_a_name(benchmarks):
    with pytest.raises(OptionsError, match="name: must be the same for all scales"):
        load_test_options({**benchmarks, "name": "both_x{scale}"})


def test_training_takes_one_scale(benchmarks):
    with pytest.raises(OptionsError, match="scale: input should be a valid integer"):
        load_options({**benchmarks, "networks": None}, training=True, paths=False)


@pytest.mark.parametrize("key", ["root", "skipped"])
def test_what_the_command_sets_cannot_be_written(benchmarks, key):
    with pytest.raises(OptionsError, match=f"{key}: unknown key"):
        load_test_options({**benchmarks, key: "."})

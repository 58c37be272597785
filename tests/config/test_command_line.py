"""Slips of the command line and mistakes that many keys share: told with their remedy, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from basicsr.config.load import load_options, load_test_options, parse_arguments
from basicsr.utils.errors import OptionsError

OPTIONS = Path(__file__).resolve().parents[2] / "options"
TRAIN = OPTIONS / "train/mcadkd_edsr_x2.yml"


def refused(*overrides: str) -> list[str]:
    with pytest.raises(OptionsError) as caught:
        load_options(TRAIN, overrides=overrides, training=True, paths=False)
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["train.total_iter=5"], "keys are joined by colons: did you mean train:total_iter=5"),
        (["train/total_iter=5"], "keys are joined by colons: did you mean train:total_iter=5"),
        (["datasets:train.gt_size=96"], "keys are joined by colons: did you mean datasets:train:gt_size=96"),
        (["datasets.train:gt_size=96"], "keys are joined by colons: did you mean datasets:train:gt_size=96"),
        (["train:perceptual_opt.type=X"], "keys are joined by colons: did you mean train:perceptual_opt:type=X"),
        (["train:total_iter", "5"], "holds blanks, which take it apart; write train:total_iter=5"),
        (["train:total_iter", "=", "5"], "holds blanks, which take it apart; write train:total_iter=5"),
        (["train:total_iter=", "5"], "holds blanks, which take it apart; write train:total_iter=5"),
        (["train:total_iter:", "5"], "holds blanks, which take it apart; write train:total_iter=5"),
        (["train:total_iter:5"], "did you mean train:total_iter=5"),
        (["train:total_iter==5"], "did you mean train:total_iter=5"),
        (["'train:total_iter=5'"], "take the quotes off: train:total_iter=5"),
        (["train:scheduler:milestones=[5,", "6]"], "write train:scheduler:milestones=[5,6], or put it in quotes"),
        (["train:scheduler:milestones:0=5"], "milestones is a list, which is given whole: train:scheduler:milestones="),
        (["train:scheduler:milestones[0]=5"], "lists are given whole: train:scheduler:milestones=[...]"),
        (
            ["total_iter=5"],
            "total_iter: unknown key here; it is one of section train, train:total_iter for --force_yml",
        ),
        (["train:total_itr=5"], "unknown key (did you mean 'total_iter'?)"),
    ],
)
def test_a_slip_of_force_yml_is_one_line_with_its_remedy(overrides, remedy):
    (line,) = refused(*overrides)
    assert line.startswith("--force_yml: ") and remedy in line


def test_a_slip_takes_no_other_override_with_it():
    (line,) = refused("train:total_iter", "scale=2", "name=a b")
    assert "'train:total_iter': is not of the form" in line


@pytest.mark.parametrize("override", ["networks:my.row={type: bicubic}", "val:metrics:psnr.y={type: calculate_psnr}"])
def test_dots_are_parts_of_names_that_the_user_chooses(override):
    load_test_options(OPTIONS / "test/edsr_x2.yml", overrides=[override], paths=False)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "-opt FILE is required: the options file, such as -opt options/train/NAME.yml"),
        (["mine.yml"], "unknown argument mine.yml: write -opt mine.yml"),
        (["-opt", "a.yml", "b.yml"], "unknown argument b.yml: one options file at a time"),
        (["-opt", "a.yml", "--forceyml", "a=1"], "unknown argument --forceyml (did you mean '--force_yml'?)"),
        (["-opt", "a.yml", "train:total_iter=1"], "unknown argument train:total_iter=1: write it after --force_yml"),
        (["-opt", "a.yml", "-auto_resume"], "unknown argument -auto_resume (did you mean '--auto_resume'?)"),
        (["-opt", "a.yml", "--resume"], "unknown argument --resume (did you mean '--auto_resume'?)"),
    ],
)
def test_unknown_arguments_are_told_with_what_is_meant(argv, told, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv, training=True)
    assert caught.value.code == 2
    assert f"error: {told}" in capsys.readouterr().err


def test_options_of_the_command_may_have_hyphens_for_underscores():
    given = parse_arguments(
        ["--opt=a.yml", "--auto-resume", "--force-yml", "a=1", "--allow-config-change"], training=True
    )
    assert (given.opt, given.auto_resume, given.force_yml, given.allow_config_change) == ("a.yml", True, ["a=1"], True)


def mistakes(text: str, folder: Path, *, paths: bool = False) -> list[str]:
    file = folder / "own.yml"
    file.write_text(text)
    with pytest.raises(OptionsError) as caught:
        load_test_options(file, paths=paths, root=folder)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("one mistake" if len(lines) == 1 else f"{len(lines)} mistakes")
    return lines


ROWS = "".join(
    f"  row{number}: {{path: r{number}.pth, network: {{_base_: net.yml, upscale: 2}}}}\n" for number in range(20)
)
HEAD = "name: a\nscale: 2\ndatasets: {test: {name: Set5, type: SingleImageDataset, dataroot_lq: lr}}\nnetworks:\n"
NETWORK = "type: EDSR\nnum_in_ch: 3\nnum_out_ch: 3\n"


def test_one_wrong_key_in_a_base_of_twenty_networks_is_one_line(tmp_path):
    (tmp_path / "net.yml").write_text(NETWORK + "num_feats: 8\n")
    (line,) = mistakes(HEAD + ROWS, tmp_path)
    assert line.startswith(f"{tmp_path / 'net.yml'}:4: networks.row0.network.num_feats: unknown key (did you mean")
    assert "; likewise 19 more: networks.row1.network.num_feats, " in line and line.endswith(", ...")


def test_one_wrong_value_written_twenty_times_is_one_line_with_the_lines(tmp_path):
    (tmp_path / "net.yml").write_text(NETWORK)
    (line,) = mistakes(HEAD + ROWS.replace("upscale: 2", "upscale: 4"), tmp_path)
    assert line.startswith(
        f"{tmp_path / 'own.yml'}:5: networks.row0.network.upscale: is 4, but scale is 2; make them e"
    )
    assert "likewise 19 more: networks.row1.network.upscale (line 6), networks.row2.network.upscale (line 7)" in line


def test_a_folder_that_all_datasets_lack_is_one_line_and_others_stay_by_themselves(tmp_path):
    names = ("Set5", "Set14", "BSD100")
    blocks = "".join(
        f"  test_{name}: {{name: {name}, type: PairedImageDataset, dataroot_gt: {tmp_path}/data/benchmark/{name}/HR,"
        f" dataroot_lq: {tmp_path}/data/benchmark/{name}/LR}}\n"
        for name in names
    )
    (tmp_path / "net.pth").touch()
    (tmp_path / "data").mkdir()
    rows = f"networks: {{a: {{path: {tmp_path}/net.pth}}, b: {{path: {tmp_path}/gone.pth}}}}\n"
    first, second = mistakes(f"name: a\nscale: 2\ndatasets:\n{blocks}{rows}", tmp_path, paths=True)
    assert f"lies in {tmp_path}/data/benchmark, which is not there; check its path; likewise 5 more: " in first
    assert f"networks.b.path: there is no file {tmp_path}/gone.pth" in second


def test_two_equal_mistakes_keep_a_line_each(tmp_path):
    (tmp_path / "net.yml").write_text(NETWORK + "num_feats: 8\n")
    assert len(mistakes(HEAD + "\n".join(ROWS.splitlines()[:2]) + "\n", tmp_path)) == 2

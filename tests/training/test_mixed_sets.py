"""Training on sets with and without HR images: each iteration takes one set, and only losses that can use it count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from support.caching import from_cache, with_teacher
from support.training import changed, checkpoint_of, differences, record_steps, run_ranks

from basicsr.config.load import load_options
from basicsr.engine.teacher_cache import CacheSettings, make_cache
from basicsr.train import train_pipeline
from basicsr.utils.errors import DataError, OptionsError

OF_TEACHER = frozenset({"l_resp", "l_img", "l_patch", "l_total"})
OF_HR = frozenset({"l_pix", "l_adv", "l_d_real", "l_d_fake", "out_d_real", "out_d_fake"})


@pytest.fixture
def mixed(mcadkd, image_pairs) -> dict[str, Any]:
    """MCAD-KD with its adversary over 7 pairs and, in two of five iterations, 4 LR images alone."""
    _, lq = image_pairs(count=4, size=22, folder="alone", seed=9)
    alone = {"type": "PairedImageDataset", "name": "alone", "dataroot_lq": str(lq), "share": 0.4}
    return changed(mcadkd, datasets__train_2=alone, train__total_iter=12, logger__print_freq=1, manual_seed=16)


def losses_of(folder: Path) -> list[frozenset[str]]:
    """The losses of each iteration."""
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    found = [[name.removeprefix("losses/") for name in entry if name.startswith("losses/")] for entry in entries]
    return [frozenset(names) for names in found if names]


def mistakes(options: dict[str, Any]) -> list[str]:
    with pytest.raises(OptionsError) as caught:
        load_options(options, training=True, paths=False)
    return [line.removeprefix("options: ") for line in str(caught.value).splitlines()[1:]]


def test_iterations_without_hr_images_leave_out_what_needs_them(mixed, tmp_path):
    folder = train_pipeline(mixed, root=tmp_path).folder
    losses = losses_of(folder)
    assert len(losses) == 12 and {*losses} == {OF_TEACHER, OF_TEACHER | OF_HR}
    log = next(folder.glob("*.log")).read_text()
    alone = [names == OF_TEACHER for names in losses]
    lines = [line for line in log.splitlines() if "l_resp: " in line]
    assert [") (alone)" in line or "] (alone)" in line for line in lines] == alone
    assert all(("(alone)" in line) != ("(train)" in line) for line in lines)
    assert "one set: train (7 images, 60.0% of the iterations), alone (4 images, 40.0% of the iterations)" in log
    assert (
        "alone: no HR images; learned from the teacher alone, by response, contrastive, without pix, adversarial" in log
    )


def test_a_resumed_run_and_workers_change_no_bit(mixed, tmp_path):
    heads = {"mixture": {"type": "MiPKD", "positions": 2}}
    options = changed(mixed, train__distill=heads, train__accumulate=2, val__val_freq=20, train__total_iter=7)
    whole = train_pipeline(changed(options, datasets__train__num_worker_per_gpu=2), root=tmp_path / "whole")
    for end in (3, 7):
        train_pipeline(changed(options, train__total_iter=end), root=tmp_path / "parts", auto_resume=True)
    first, second = (checkpoint_of(tmp_path / root / "experiments/tiny", 7) for root in ("whole", "parts"))
    assert OF_TEACHER in losses_of(whole.folder) and len({*losses_of(whole.folder)}) == 2
    assert differences(first, second) == []
    assert first["state"]["images"]["images"] == 7 and first["state"]["images"]["train_2: images"] == 4


def test_the_discriminators_loss_scaler_rests_without_hr_images(mixed, tmp_path):
    options = changed(mixed, amp="fp16", train__contrastive_opt=None, train__total_iter=2, datasets__val=None)
    folder = train_pipeline(changed(options, val=None), root=tmp_path).folder
    assert len({*losses_of(folder)}) == 2


def test_two_ranks_learn_what_one_learns_at_the_same_total_batch(mixed, tmp_path):
    heads = {"mixture": {"type": "MiPKD", "positions": 2, "feature_weight": 1e-3, "autoencoder_weight": 1e-3}}
    options = changed(mixed, train__distill=heads, val__val_freq=20)
    single = changed(options, datasets__train__batch_size_per_gpu=4)
    run_ranks(record_steps, 2, options, "pytorch", 4, str(tmp_path / "two"))
    record_steps(0, single, "none", 4, str(tmp_path / "one"))
    first, second, one = (torch.load(tmp_path / name) for name in ("two.0", "two.1", "one.0"))
    assert differences(first["weights"], second["weights"]) == []
    assert [set(step) for step in first["history"]] == [set(step) for step in one["history"]]
    assert len({frozenset(step) for step in one["history"]}) == 2, "of both kinds"
    for step, other in zip(first["history"], one["history"], strict=True):
        assert step["l_resp"] == pytest.approx(other["l_resp"], rel=1e-3)


def test_each_set_has_a_cache_of_its_own(mixed, tmp_path):
    options = with_teacher(mixed, tmp_path)
    folders = {key: make_of(options, key) for key in ("train", "train_2")}
    cached = from_cache(options, folders["train"])
    (line,) = mistakes(cached)
    assert line.startswith("datasets.train.teacher_cache: is given, but datasets.train_2 has none")
    cached["datasets"]["train_2"]["teacher_cache"] = str(folders["train_2"])
    folder = train_pipeline(cached, root=tmp_path).folder
    assert {*losses_of(folder)} == {OF_TEACHER, OF_TEACHER | OF_HR}
    state = checkpoint_of(folder, 12)["state"]
    assert {"datasets.train.teacher_cache", "datasets.train_2.teacher_cache"} <= set(state["files"])
    cached["datasets"]["train_2"]["teacher_cache"] = str(make_of(with_teacher(mixed, tmp_path, seed=6), "train_2"))
    with pytest.raises(DataError, match=r"is of another teacher than .*: SHA-256 of the teacher's weights"):
        train_pipeline(changed(cached, name="other"), root=tmp_path)


def make_of(options: dict[str, Any], key: str) -> Path:
    how = CacheSettings(torch.device("cpu"))
    return make_cache(load_options(options, training=True), how, None, lambda line: None, dataset=key).folder


def test_an_unusable_image_is_replaced_by_another_one_of_its_set(mixed, tmp_path):
    options = changed(mixed, datasets__train__skip_bad_images=2)
    lq = Path(options["datasets"]["train_2"]["dataroot_lq"])
    bad = [lq / "img003x2.png", Path(options["datasets"]["train"]["dataroot_lq"]) / "img006x2.png"]  # last ones
    for file in bad:
        file.write_bytes(file.read_bytes()[:60])
    folder = train_pipeline(changed(options, train__total_iter=8), root=tmp_path).folder
    skipped = checkpoint_of(folder, 8)["state"]["skipped"]
    assert list(skipped) == [6, 10] and bad[0].name in skipped[10][0]
    bad[0].unlink()
    cv2.imwrite(str(bad[0]), cv2.imread(str(lq / "img002x2.png")))  # it can be read by now, and is left out still
    train_pipeline(options, root=tmp_path, auto_resume=True)
    assert list(checkpoint_of(folder, 12)["state"]["skipped"]) == [6, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": "gray"}, "color: is 'gray', but datasets.train.color is None: the network takes values of one kind"),
        (
            {"gt_size": 24},
            "gt_size: is 24, but datasets.train.gt_size is 32: batches and patches are alike in all sets",
        ),
        ({"batch_size_per_gpu": 3}, "batch_size_per_gpu: is 3, but datasets.train.batch_size_per_gpu is 2: batches"),
        ({"scale": 4}, "scale: is filled in: 2 here, got 4; remove it"),
        ({"share": 1.5}, "share: input should be less than 1, got 1.5"),
    ],
)
def test_sets_that_do_not_go_together_are_refused(mixed, changes, message):
    (line,) = mistakes(changed(mixed, **{f"datasets__train_2__{name}": value for name, value in changes.items()}))
    assert line.startswith(f"datasets.train_2.{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets__train__share": 0.7}, "datasets.train_2.share: makes 1.1 with those of the others; they must"),
        ({"datasets__val__share": 0.7}, "datasets.val.share: is of training only; remove it"),
        ({"datasets__train_2": None, "datasets__train__share": 0.5}, "datasets.train.share: is of several training"),
        ({"datasets__train__batch_size_per_gpu": -2}, "datasets.train.batch_size_per_gpu: input should be greater"),
        (
            {"train__resp_kd_opt": None, "train__contrastive_opt": None, "train__distill": {"a": {"type": "DUKD"}}},
            "datasets.train_2: has no HR images (dataroot_gt), and every loss of weight needs them",
        ),
    ],
)
def test_options_around_several_sets_are_refused_in_one_line(mixed, changes, message):
    (line,) = mistakes(changed(mixed, **changes))
    assert line.startswith(message)


def test_a_further_set_needs_the_first(mixed):
    options = changed(mixed)
    options["datasets"] = {"train_2": options["datasets"]["train"]}
    assert mistakes(options)[0].startswith(
        "datasets.train_2: is a further training set, and there is no datasets.train"
    )


def test_another_share_makes_it_another_experiment(mixed, tmp_path):
    train_pipeline(changed(mixed, train__total_iter=4), root=tmp_path)
    with pytest.raises(OptionsError, match=r"datasets\.train_2\.share: 0\.4 -> 0\.5") as caught:
        train_pipeline(changed(mixed, datasets__train_2__share=0.5), root=tmp_path, auto_resume=True)
    assert str(caught.value).count("->") == 1


def test_options_saved_by_a_run_load_again(mixed, tmp_path):
    folder = train_pipeline(changed(mixed, train__total_iter=1), root=tmp_path).folder
    again = load_options(folder / "tiny.yml", training=True)
    assert again.further_sets["train_2"].batch_size_per_gpu == 2
    assert again.further_sets["train_2"].arguments["gt_size"] == 32

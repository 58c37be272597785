"""What an iteration does, number by number: rates, weights, accumulation, clipping, averages, signals."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import yaml
from support.training import (
    changed,
    checkpoint_of,
    differences,
    finish,
    record_steps,
    run_ranks,
    start,
    without_teacher,
)

from basicsr.engine.training_run import TrainingRun
from basicsr.engine.validation import validate
from basicsr.metrics.evaluator import Evaluation
from basicsr.test import test_pipeline as evaluate_file
from basicsr.train import train_pipeline
from basicsr.utils.errors import Preempted


def states(options, tmp_path, iterations: int) -> list[dict]:
    """The checkpoints after each iteration."""
    options = changed(options, train__total_iter=iterations, logger__save_checkpoint_freq=1)
    folder = train_pipeline(options, root=tmp_path).folder
    return [checkpoint_of(folder, iteration) for iteration in range(1, iterations + 1)]


def vector(checkpoint: dict, key: str = "params") -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in checkpoint["g"][key].values()])


def test_rates_of_every_iteration(mcadkd, tmp_path):
    scheduler = {"type": "MultiStepLR", "milestones": [3], "gamma": 0.1}
    run = states(changed(mcadkd, train__scheduler=scheduler, train__warmup_iter=3), tmp_path, 5)
    for label in "gd":
        rates = [checkpoint["state"]["optimizers"][label]["param_groups"][0]["lr"] for checkpoint in run]
        assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-4, 1e-4])


def test_the_total_is_the_sum_of_all_parts_with_their_weights(mcadkd, tmp_path):
    process = start(record_steps, 0, changed(mcadkd, train__total_iter=2), "none", 2, str(tmp_path / "record"))
    process.join()
    for parts in torch.load(tmp_path / "record.0", weights_only=True)["history"]:
        contrastive = 0.05 * (0.3 * parts["l_img"] + 0.7 * parts["l_patch"])
        expected = 3.0 * parts["l_pix"] + 0.5 * parts["l_resp"] + contrastive + 0.01 * parts["l_adv"]
        assert parts["l_total"] == pytest.approx(expected, rel=1e-6)


def plain_sgd(options: dict, **changes) -> dict:
    """Reconstruction only, by plain steps along the gradient, so that its scale shows."""
    sgd = {"type": "SGD", "lr": 0.1}
    return without_teacher(options, train__scheduler=None, train__optim_g=sgd, **changes)


def test_accumulated_batches_are_one_step_with_their_mean(mcadkd, tmp_path):
    two = states(plain_sgd(mcadkd, train__accumulate=2), tmp_path / "two", 2)[-1]
    one = states(plain_sgd(mcadkd, datasets__train__batch_size_per_gpu=4), tmp_path / "one", 2)[-1]
    torch.testing.assert_close(vector(two), vector(one), rtol=1e-4, atol=1e-7)


def test_clipped_gradients_have_the_norm_asked_for(mcadkd, tmp_path):
    first, second = states(plain_sgd(mcadkd, train__grad_clip=0.01), tmp_path, 2)
    assert (vector(second) - vector(first)).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_the_student_waits_for_the_discriminator(mcadkd, tmp_path):
    run = states(changed(mcadkd, train__net_d_init_iters=2, train__net_d_iters=2), tmp_path, 6)
    moved = [not torch.equal(vector(a), vector(b)) for a, b in itertools.pairwise(run)]
    assert moved == [False, False, True, False, True]  # iterations 2 to 6: those after 2 that are even
    parameters = [run[i]["d"]["params"]["conv0.weight"] for i in range(2)]
    assert not torch.equal(*parameters)


def test_the_average_follows_the_weights_and_is_what_is_evaluated(mcadkd, tmp_path):
    options = changed(mcadkd, val__val_freq=4, train__ema_decay=0.6)
    run = states(options, tmp_path, 4)
    for before, after in itertools.pairwise(run):
        expected = 0.6 * vector(before, "params_ema") + 0.4 * vector(after)
        torch.testing.assert_close(vector(after, "params_ema"), expected, rtol=1e-5, atol=1e-7)
    testing = {
        "name": "ema",
        "scale": 2,
        "num_gpu": 0,
        "network_g": options["network_g"],
        "datasets": {"val": options["datasets"]["val"]},
        "val": {"metrics": options["val"]["metrics"]},
        "path": {
            "pretrain_network_g": str(tmp_path / "experiments/tiny/models/net_g_4.pth"),
            "param_key_g": "params_ema",
        },
    }
    measured = evaluate_file(testing, root=tmp_path).scales[0].rows[0].evaluations["val"].means()
    best = run[-1]["state"]["best"]["val"]
    assert {name: record["value"] for name, record in best.items()} == pytest.approx(measured)


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_says(mcadkd, tmp_path):
    metrics = {"up": {"type": "calculate_psnr", "crop_border": 0}, "down": {"type": "calculate_psnr", "crop_border": 0}}
    metrics["down"]["better"] = "lower"
    run = _assembled(changed(mcadkd, val__metrics=metrics), tmp_path)
    import numpy as np

    found = []
    for run.iteration, value in ((1, 5.0), (2, 7.0), (3, 4.0)):
        evaluation = Evaluation(("up", "down"), ("a",), np.full((1, 2), value), np.zeros(1))
        found.append(run.note_best("val", evaluation))
    assert found == [["up", "down"], ["up"], ["down"]]
    assert run.best["val"] == {"up": {"value": 7.0, "iteration": 2}, "down": {"value": 4.0, "iteration": 3}}


def _assembled(options, tmp_path) -> TrainingRun:
    from basicsr.config.load import load_options
    from basicsr.engine.process.distributed import distributed

    loaded = load_options(options, training=True, root=tmp_path)
    with distributed("none", 0, "gloo") as place:
        return TrainingRun(loaded, place, None)


def test_a_validation_that_was_stopped_is_made_up_for(mcadkd, tmp_path, monkeypatch):
    """The stop comes within the last validation: nothing is reported as done that is not."""
    import basicsr.train as module

    def stopped(run, folder, log, stop):
        stop.signal = 15
        return validate(run, folder, log, stop)

    with monkeypatch.context() as patch:
        patch.setattr(module, "validate", stopped)
        with pytest.raises(Preempted, match=r"saved 8\.state"):
            train_pipeline(mcadkd, root=tmp_path)
    resumed = train_pipeline(mcadkd, root=tmp_path, auto_resume=True)
    whole = train_pipeline(mcadkd, root=tmp_path / "whole")
    assert resumed.best == whole.best
    load = checkpoint_of
    assert differences(load(resumed.folder, 8), load(whole.folder, 8)) == []


def test_networks_that_draw_at_random_resume_bitwise(mcadkd, tmp_path):
    swinir = {
        "type": "SwinIR",
        "upscale": 2,
        "img_size": 16,
        "window_size": 4,
        "img_range": 1.0,
        "depths": [2],
        "embed_dim": 8,
        "num_heads": [2],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
        "drop_path_rate": 0.5,
        "drop_rate": 0.2,
    }
    options = changed(mcadkd, network_g=swinir)
    whole = finish(options, tmp_path)
    folder = tmp_path / "experiments/tiny/training_states"
    (folder / "8.json").unlink()
    assert differences(whole, finish(options, tmp_path)) == []
    again = finish(options, tmp_path / "again")
    assert differences(whole, again) == []


def test_fp16_trains_and_resumes_bitwise(mcadkd, tmp_path):
    options = changed(mcadkd, amp="fp16")
    whole = finish(options, tmp_path)
    assert whole["state"]["scalers"]["g"]["scale"] > 0
    (tmp_path / "experiments/tiny/training_states/8.json").unlink()
    assert differences(whole, finish(options, tmp_path)) == []


def test_changed_options_are_told_on_resume_and_take_effect(mcadkd, tmp_path):
    train_pipeline(mcadkd, root=tmp_path)
    longer = changed(mcadkd, train__total_iter=9, train__optim_g__lr=1e-5, logger__save_checkpoint_freq=1)
    folder = train_pipeline(longer, root=tmp_path, auto_resume=True, allow_config_change=True).folder
    log = max(folder.glob("train_*.log"), key=lambda path: path.stat().st_mtime_ns).read_text()
    assert "changed since 8.state was saved: train.optim_g.lr: 0.001 -> 1e-05" in log
    assert "changed since 8.state was saved: train.total_iter: 8 -> 9" in log
    assert checkpoint_of(folder, 9)["state"]["optimizers"]["g"]["param_groups"][0]["lr"] == pytest.approx(1e-5)


def test_each_run_has_a_log_of_its_own(mcadkd, tmp_path):
    for name in ("first", "second"):
        train_pipeline(changed(mcadkd, name=name, train__total_iter=1), root=tmp_path)
    log = next((tmp_path / "experiments/first").glob("*.log")).read_text()
    assert "first" in log and "second" not in log


def test_validation_sets_without_hr_images_have_no_figures(mcadkd, tmp_path):
    photos = {"name": "photos", "type": "SingleImageDataset", "dataroot_lq": mcadkd["datasets"]["val"]["dataroot_lq"]}
    datasets = {"train": mcadkd["datasets"]["train"], "val": photos, "val_1": mcadkd["datasets"]["val"]}
    result = train_pipeline(changed(mcadkd, datasets=datasets, val__save_img=True), root=tmp_path)
    assert set(result.best) == {"val"}
    assert len(list((result.folder / "visualization/photos").rglob("*_8.png"))) == 3


def test_logged_losses_are_the_means_over_ranks(mcadkd, tmp_path):
    def logged(root) -> dict[str, float]:
        log = next((root / "experiments/tiny").glob("*.log")).read_text()
        line = log.split("iter:       1")[1].splitlines()[0]
        return {name: float(value) for name, value in re.findall(r"(l_\w+): (\S+)", line)}

    from support.training import train_rank_all

    one = changed(mcadkd, datasets__train__batch_size_per_gpu=4, train__total_iter=1, logger__print_freq=1)
    train_pipeline(one, root=tmp_path / "one")
    two = changed(one, datasets__train__batch_size_per_gpu=2)
    run_ranks(train_rank_all, 2, [two], str(tmp_path / "two"))
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-3)


def test_the_options_kept_with_a_run_start_the_same_run(mcadkd, tmp_path):
    first = train_pipeline(mcadkd, root=tmp_path / "first").folder
    kept = yaml.safe_load((first / "tiny.yml").read_text())
    second = train_pipeline(kept, root=tmp_path / "second").folder
    assert differences(checkpoint_of(first, 8), checkpoint_of(second, 8)) == []

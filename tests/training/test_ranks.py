"""Several ranks: equal weights everywhere, and the same training as one rank with the whole batch."""

from __future__ import annotations

import pytest
import torch
from support.training import changed, differences, record_steps, run_ranks, start


def records(options, tmp_path, world_size: int, iterations: int) -> list[dict]:
    tmp_path.mkdir(exist_ok=True)
    out = tmp_path / f"record_{world_size}"
    if world_size == 1:
        process = start(record_steps, 0, options, "none", iterations, str(out))
        process.join()
        assert process.exitcode == 0
    else:
        run_ranks(record_steps, world_size, options, "pytorch", iterations, str(out))
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world_size)]


def test_both_ranks_hold_equal_weights_after_twenty_steps_with_the_adversary(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=20)
    first, second = records(options, tmp_path, 2, 20)
    assert differences(first["weights"], second["weights"]) == []
    assert first["history"] == second["history"]


@pytest.mark.parametrize("patch_negatives", ["image", "batch"])
def test_two_ranks_follow_the_losses_of_one_with_the_whole_batch(mcadkd, tmp_path, patch_negatives):
    def options(batch: int) -> dict:
        return changed(
            mcadkd,
            train__total_iter=10,
            datasets__train__batch_size_per_gpu=batch,
            train__contrastive_opt__patch_negatives=patch_negatives,
        )

    two = records(options(4), tmp_path, 2, 10)[0]
    one = records(options(8), tmp_path, 1, 10)[0]
    # Sums are taken in another order, so that float32 rounds differently; Adam's normalisation lets such
    # differences grow to about the learning rate's share of a weight. A wrong gradient is off by far more.
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=3e-5)
    assert two["history"][0] == pytest.approx(one["history"][0], rel=1e-5, abs=1e-6)


def test_accumulating_two_batches_is_one_step_with_both(mcadkd, tmp_path):
    # Left out is what depends on the batch as it comes: its negatives, and spectral norm's iteration at each pass.
    plain = {"train__contrastive_opt": None, "train__adversarial_opt": None, "network_d": None, "train__total_iter": 5}
    halves = records(
        changed(mcadkd, **plain, train__accumulate=2, datasets__train__batch_size_per_gpu=2), tmp_path / "a", 1, 5
    )[0]
    whole = records(changed(mcadkd, **plain, datasets__train__batch_size_per_gpu=4), tmp_path / "b", 1, 5)[0]
    for ours, theirs in zip(halves["history"], whole["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_all_methods_see_one_batch_on_two_ranks_and_on_one(mcadkd, tmp_path):
    # RKD compares the images of the batch with each other, the rest each image by itself.
    methods: dict[str, dict] = {name: {"type": name} for name in ("FitNet", "AttentionTransfer", "RKD", "FAKD")}
    methods["FitNet"]["loss_weight"] = 1e-4  # its features are as large as pixel values up to 255
    methods["DCKD"] = {"type": "DCKD", "vqgan_weights": "random", "update_steps": [2]}
    methods["DUKD"] = {"type": "DUKD"}
    methods["MiPKD"] = {"type": "MiPKD", "feature_weight": 1e-3, "autoencoder_weight": 1e-3}
    adversarial = {"train__contrastive_opt": None, "train__adversarial_opt": None, "network_d": None}
    options = changed(mcadkd, **adversarial, train__optim_d=None, train__total_iter=3, train__distill=methods)
    halves = changed(options, datasets__train__batch_size_per_gpu=2)
    two = records(halves, tmp_path, 2, 3)
    one = records(changed(options, datasets__train__batch_size_per_gpu=4), tmp_path, 1, 3)[0]
    assert differences(two[0]["weights"], two[1]["weights"]) == []
    assert min(one["history"][0][part] for part in ("l_rkd_distance", "l_rkd_angle")) > 1e-3
    for ours, theirs in zip(two[0]["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_a_loss_of_features_alone_trains_on_two_ranks_as_on_one(mcadkd, tmp_path):
    without = dict.fromkeys(("pixel_opt", "resp_kd_opt", "contrastive_opt", "adversarial_opt", "optim_d"))
    options = changed(mcadkd, network_d=None, **{f"train__{key}": None for key in without})
    options = changed(options, train__distill={"hint": {"type": "FitNet"}}, train__total_iter=3)
    two = records(changed(options, datasets__train__batch_size_per_gpu=2), tmp_path, 2, 3)[0]
    one = records(changed(options, datasets__train__batch_size_per_gpu=4), tmp_path, 1, 3)[0]
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)

"""What a run trains and leaves behind; the paper's ablations as one-line edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.shipped import reduced
from support.training import changed, checkpoint_of, without_teacher

from basicsr.config.load import load_options
from basicsr.train import train_pipeline
from basicsr.utils.errors import OptionsError

OPTIONS = Path(__file__).resolve().parents[2] / "options"


def trained(options, tmp_path, iterations: int = 4) -> dict:
    """First and last checkpoint of a run."""
    options = changed(options, train__total_iter=iterations, logger__save_checkpoint_freq=1)
    folder = train_pipeline(options, root=tmp_path).folder
    load = torch.load
    return {
        iteration: {
            "g": load(folder / f"models/net_g_{iteration}.pth", weights_only=True),
            "d": load(folder / f"models/net_d_{iteration}.pth", weights_only=True)
            if (folder / f"models/net_d_{iteration}.pth").exists()
            else None,
            "state": load(folder / f"training_states/{iteration}.state", weights_only=True),
        }
        for iteration in (1, iterations)
    }


def unchanged(before: dict, after: dict) -> set[str]:
    return {key for key in before if torch.equal(before[key], after[key])}


def test_student_heads_temperature_and_discriminator_all_learn(mcadkd, tmp_path):
    run = trained(mcadkd, tmp_path)
    assert unchanged(run[1]["g"]["params"], run[4]["g"]["params"]) == set()
    heads = {key for key in run[1]["state"]["terms"] if key.startswith("contrastive.")}
    assert {"contrastive.log_tau"} < heads
    assert unchanged(run[1]["state"]["terms"], run[4]["state"]["terms"]) == set()
    assert unchanged(run[1]["d"]["params"], run[4]["d"]["params"]) == set()
    groups = run[4]["state"]["optimizers"]
    assert [group["name"] for group in groups["g"]["param_groups"]] == ["student", "heads"]
    assert [group["name"] for group in groups["d"]["param_groups"]] == ["discriminator"]


def test_under_adamw_the_temperature_is_drawn_to_nothing(mcadkd, tmp_path):
    """Neither by its own gradient, which a weight of 0 takes away, nor by a decay of its logarithm, towards tau = 1."""
    adamw = {"type": "AdamW", "lr": 0.01, "weight_decay": 0.5}
    options = changed(mcadkd, train__optim_g=adamw, train__contrastive_opt__loss_weight=0)
    run = trained(options, tmp_path)
    terms = run[4]["state"]["terms"]
    assert terms["contrastive.log_tau"].exp().item() == pytest.approx(0.07, rel=1e-6)
    assert unchanged(run[1]["state"]["terms"], terms) == set(terms)
    assert [group["weight_decay"] for group in run[4]["state"]["optimizers"]["g"]["param_groups"]] == [0.5, 0]


def test_a_network_trained_in_the_students_place_decays_as_the_student_would(image_pairs, tmp_path):
    options = reduced(load_options(OPTIONS / "train/csd_edsr_x2.yml", training=True, paths=False), image_pairs)
    adamw = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.5}
    contrastive = {"type": "hybrid", "patch_size": 6, "num_patches": 3, "embed_dim": 8}
    options = changed(options, train__optim_g=adamw, train__contrastive_opt=contrastive, train__total_iter=1)
    state = checkpoint_of(train_pipeline(options, root=tmp_path).folder, 1)["state"]
    groups = [
        (group["name"], group["weight_decay"], len(group["params"]))
        for group in state["optimizers"]["g"]["param_groups"]
    ]
    wide = sum(key.startswith("csd.wide.") and not key.endswith("mean") for key in state["terms"])
    heads = sum(key.startswith("contrastive.") for key in state["terms"])
    assert groups == [("student", 0.5, wide), ("heads", 0.0, heads)] and wide > heads > 0


def test_the_history_that_follows_an_average_asks_for_one_and_follows_it(image_pairs, tmp_path):
    loaded = load_options(OPTIONS / "train/dckd_as_published_rcan_x2.yml", training=True, paths=False)
    options = reduced(loaded, image_pairs)
    options["train"]["distill"]["dckd"]["update_steps"] = [3]
    with pytest.raises(
        OptionsError, match=r"train.ema_decay is 0, and dckd \(DCKD\) follows the moving average of the"
    ):
        train_pipeline(changed(options, train__ema_decay=0), root=tmp_path)
    saved = checkpoint_of(train_pipeline(options, root=tmp_path).folder, 3)
    begun = checkpoint_of(tmp_path / "experiments" / options["name"], 2)["state"]["terms"]
    for key, average in saved["g"]["params_ema"].items():
        before = begun[f"dckd.history.{key}"]
        expected = 0.1 * before + 0.9 * average
        assert torch.allclose(saved["state"]["terms"][f"dckd.history.{key}"], expected, rtol=1e-5, atol=1e-7), key


def test_the_discriminators_rate_follows_the_schedule_too(mcadkd, tmp_path):
    scheduler = {"type": "MultiStepLR", "milestones": [2], "gamma": 0.1}
    run = trained(changed(mcadkd, train__scheduler=scheduler), tmp_path)
    for optimizer in run[4]["state"]["optimizers"].values():
        assert [group["lr"] for group in optimizer["param_groups"]] == pytest.approx(
            [1e-4] * len(optimizer["param_groups"])
        )


def test_as_published_neither_heads_nor_temperature_nor_discriminator_learn(mcadkd, tmp_path):
    options = changed(mcadkd, train__contrastive_opt__train_heads=False, train__train_adversary=False)
    run = trained(options, tmp_path)
    assert unchanged(run[1]["state"]["terms"], run[4]["state"]["terms"]) == set(run[1]["state"]["terms"])
    # Spectral norm's vectors are no parameters: they are refined in every forward pass.
    parameters = {key for key in run[1]["d"]["params"] if not key.endswith(("_u", "_v"))}
    assert parameters <= unchanged(run[1]["d"]["params"], run[4]["d"]["params"])
    assert unchanged(run[1]["g"]["params"], run[4]["g"]["params"]) == set()


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"train__adversarial_opt": None}, {"l_pix", "l_resp", "l_img", "l_patch"}),
        ({"train__contrastive_opt": None}, {"l_pix", "l_resp", "l_adv"}),
        ({"train__contrastive_opt__type": "image"}, {"l_pix", "l_resp", "l_img", "l_adv"}),
        ({"train__contrastive_opt__type": "patch"}, {"l_pix", "l_resp", "l_patch", "l_adv"}),
        ({"train__resp_kd_opt": None}, {"l_pix", "l_img", "l_patch", "l_adv"}),
        ({"train__pixel_opt": None}, {"l_resp", "l_img", "l_patch", "l_adv"}),
    ],
)
def test_each_loss_can_be_left_out_by_one_line(mcadkd, tmp_path, changes, terms):
    options = changed(mcadkd, **changes, train__total_iter=2, logger__print_freq=1)
    folder = train_pipeline(options, root=tmp_path).folder
    line = next(folder.glob("train_*.log")).read_text().split("iter:       2")[1].splitlines()[0]
    logged = {word.rstrip(":") for word in line.split() if word.startswith("l_") and not word.startswith("l_d_")}
    assert logged == terms | {"l_total"}


def test_without_a_teacher_a_network_trains_and_warm_starts(mcadkd, tmp_path):
    plain = without_teacher(mcadkd)
    first = trained(plain, tmp_path / "first")
    source = tmp_path / "first/experiments/tiny/models/net_g_4.pth"
    warm = trained(changed(plain, path={"pretrain_network_g": str(source)}), tmp_path / "warm", iterations=2)
    cold = trained(plain, tmp_path / "cold", iterations=2)
    distance = {
        name: sum((run[1]["g"]["params"][key] - value).abs().sum() for key, value in first[4]["g"]["params"].items())
        for name, run in (("warm", warm), ("cold", cold))
    }
    assert distance["warm"] < 0.5 * distance["cold"]


def test_alone_and_distilled_students_start_from_the_same_weights(mcadkd, tmp_path):
    still = changed(mcadkd, train__optim_g__lr=1e-30)
    distilled = trained(still, tmp_path / "kd", iterations=2)
    alone = without_teacher(still)
    other = trained(alone, tmp_path / "alone", iterations=2)
    assert unchanged(distilled[1]["g"]["params"], other[1]["g"]["params"]) == set(other[1]["g"]["params"])


def test_only_the_newest_checkpoints_and_the_best_are_kept(mcadkd, tmp_path):
    options = changed(mcadkd, logger__keep_checkpoints=2, logger__save_checkpoint_freq=2, val__val_freq=4)
    result = train_pipeline(options, root=tmp_path)
    models = {path.name for path in (result.folder / "models").iterdir()}
    kept = {f"net_{label}_{iteration}.pth" for label in "gd" for iteration in (6, 8)}
    assert models == kept | {"net_g_best.pth", "net_g_latest.pth"}
    best = torch.load(result.folder / "models/net_g_best.pth", weights_only=True)
    assert set(best) == {"params", "params_ema", "network", "training"}
    assert result.best["val"]["psnr"]["value"] > 5

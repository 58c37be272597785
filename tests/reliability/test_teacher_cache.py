"""Training from a teacher's cache: as by that teacher's own outputs, exactly repeatable, and refused if stale."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from support.caching import from_cache, make, with_teacher
from support.distillation import STUDENT, batch, kd_model, trained
from support.training import (
    changed,
    checkpoint_of,
    differences,
    finish,
    record_steps,
    run_ranks,
    told,
    told_by_ranks,
    without_teacher,
)

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.data.loading import build_dataset
from basicsr.distill.base import LossTerm, Reconstruction
from basicsr.distill.contrastive import HybridContrastive
from basicsr.distill.csd import CSD
from basicsr.distill.dckd import DCKD
from basicsr.distill.dukd import DUKD
from basicsr.distill.fitnet import FitNet
from basicsr.distill.mipkd import MiPKD
from basicsr.distill.response import ResponseDistillation, SeveralTeachers
from basicsr.engine.inputs import check_cache_content, check_cache_key, input_digests
from basicsr.models.kd_model import KDModel
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.precision import Precision

OTHER = {"network": {**STUDENT, "num_feat": 10}, "allow_random": True}


def suited_terms() -> dict[str, LossTerm]:
    torch.manual_seed(2)
    return {
        "pix": Reconstruction("l_pix", {"type": "L1Loss"}),
        "response": ResponseDistillation(),
        "contrastive": HybridContrastive(patch_size=12, num_patches=3, embed_dim=8),
        "several": SeveralTeachers(teachers=[OTHER]),
        "csd": CSD(num_negatives=2, vgg_weights="random"),
        "dckd": DCKD(num_negatives=2, vqgan_weights="random"),
    }


def test_losses_and_gradients_are_those_of_the_teacher_whose_outputs_they_are():
    live, step = kd_model(suited_terms()), batch(size=32)
    torch.manual_seed(0)
    cached = KDModel(
        build_network(STUDENT), None, suited_terms(), Precision("cpu"), Precision("cpu"), 2, seed=5
    ).train()
    assert cached.teacher is None
    assert {name: value.shape for name, value in cached.state_dict().items()} == {
        name: value.shape for name, value in live.state_dict().items()
    }
    cached.load_state_dict(live.state_dict())
    outputs = dataclasses.replace(step, sr_teacher=live.teacher(step.lq))
    of_teacher, of_cache = live(step, 1), cached(outputs, 1)
    assert differences(of_teacher.parts, of_cache.parts) == []
    of_teacher.total.backward()
    of_cache.total.backward()
    gradients = [{name: value.grad for name, value in trained(model).items()} for model in (live, cached)]
    assert differences(*gradients) == []
    with pytest.raises(OptionsError, match="this type of dataset gives no sr_teacher"):
        cached(step, 1)


@pytest.mark.parametrize(
    ("term", "uses"),
    [
        (FitNet, "the teacher's features"),
        (MiPKD, "the teacher's features and stages"),
        (DUKD, "the teacher on other images"),
        (LossTerm, "the teacher itself, as its class does not say otherwise"),
    ],
)
def test_terms_that_use_more_than_the_outputs_are_refused(term, uses):
    with pytest.raises(OptionsError, match=rf"^mine \({term.__name__}\) uses {uses}.*; remove teacher_cache, or the"):
        KDModel(build_network(STUDENT), None, {"mine": term()}, Precision("cpu"), Precision("cpu"), 2)


@pytest.fixture
def options(mcadkd, tmp_path):
    return changed(with_teacher(mcadkd, tmp_path), train__total_iter=4, val__val_freq=4, logger__save_checkpoint_freq=2)


@pytest.fixture
def cached(options, tmp_path):
    """Options of MCAD-KD with an adversary and a cache; the teacher's file is gone."""
    folder = make(options, tmp_path / "cache").folder
    return from_cache(options, folder)


def test_training_needs_no_teacher_and_repeats_with_workers_ranks_and_resumes(options, cached, tmp_path):
    Path(options["path"]["pretrain_network_t"]).unlink()
    whole = finish(changed(cached, datasets__train__num_worker_per_gpu=2), tmp_path / "whole")
    finish(changed(cached, train__total_iter=2), tmp_path / "parts")
    parts = finish(changed(cached, datasets__train__num_worker_per_gpu=1), tmp_path / "parts")
    for one in (whole, parts):  # a run that was shorter once has validated then
        one["state"].pop("best")
        one["g"].pop("training")
    assert differences(whole, parts) == []
    training = torch.load(tmp_path / "whole/experiments/tiny/models/net_g_4.pth", weights_only=True)["training"]
    assert training["teacher"] == "EDSR" and list(training["weights"]) == ["datasets.train.teacher_cache"]
    record = json.loads((tmp_path / "whole/experiments/tiny/record.json").read_text())
    assert record["starts"][0]["weights"]["datasets.train.teacher_cache"]["file"].endswith("cache/cache.json")
    run_ranks(record_steps, 2, cached, "pytorch", 3, str(tmp_path / "ranks"))
    first, second = (torch.load(tmp_path / f"ranks.{rank}", weights_only=True) for rank in range(2))
    assert differences(first, second) == []


def test_another_cache_or_a_teacher_in_its_place_makes_it_another_experiment(options, cached, tmp_path):
    finish(changed(cached, train__total_iter=2), tmp_path)
    other = make(options, tmp_path / "other", self_ensemble=True).folder
    code, errors = told(from_cache(options, other), tmp_path, auto_resume=True)
    assert code == 2 and "  content of datasets.train.teacher_cache: SHA-256 " in errors
    code, errors = told(options, tmp_path, auto_resume=True)
    assert code == 2 and "  content of path.pretrain_network_t: SHA-256 none -> " in errors
    moved = shutil.move(tmp_path / "cache", tmp_path / "moved")
    code, errors = told(from_cache(options, Path(moved), teacher=True), tmp_path, auto_resume=True)
    assert code == 0 and checkpoint_of(tmp_path / "experiments/tiny", 4)["state"]["iteration"] == 4


def test_each_rank_ends_with_one_line_and_nothing_is_written(cached, tmp_path):
    (tmp_path / "cache/img001.ppm").unlink()
    run_ranks(told_by_ranks, 2, cached, str(tmp_path), {})
    code, line = (tmp_path / "told.0").read_text().split("\n", 1)
    assert code == "3" and line.count("\n") == 1
    assert line.startswith(f"[rank 0] error: teacher_cache {tmp_path}/cache: img001.ppm is missing; make what is")
    assert (tmp_path / "told.1").read_text() == "3\n"
    assert not (tmp_path / "experiments").exists()


def check(options: dict[str, Any]) -> None:
    loaded = load_options(options, training=True)
    check_cache_key(loaded, input_digests(loaded))
    train = loaded.datasets["train"]
    check_cache_content(
        loaded.teacher_cache, build_dataset({"type": train.type, **train.arguments, "phase": "train", "scale": 2})
    )


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "cache.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_stale_caches_are_refused_each_in_a_line(options, cached, tmp_path):
    folder = tmp_path / "cache"
    train = options["datasets"]["train"]
    lq, gt = Path(train["dataroot_lq"]), Path(train["dataroot_gt"])
    check(cached)
    check(from_cache(options, folder, teacher=True))
    check(changed(cached, network_t={"type": "auto"}))
    manifest = json.loads((folder / "cache.json").read_text())
    another = with_teacher(options, tmp_path, seed=6)

    def refused(message: str, given: dict[str, Any] = cached) -> None:
        with pytest.raises(DataError, match=message) as caught:
            check(given)
        text = str(caught.value)
        assert "\n" not in text and text.startswith(("teacher_cache", str(folder))), text
        assert "python scripts/cache_teacher.py -opt FILE" in text

    refused("SHA-256 of its weights is .*, that of path.pretrain", from_cache(another, folder, teacher=True))
    named = {**options["network_t"], "num_block": 4}
    refused("of another teacher: its num_block is 3, that of network_t 4", changed(cached, network_t=named))
    edited(folder, key={**manifest["key"], "scale": 4})
    refused("of another teacher: scale 4, the options' scale is 2")
    edited(folder, key=manifest["key"], format=2)
    refused("of format 2, this version reads 1")
    edited(folder, format=1, complete=False)
    refused("is unfinished; go on with it by")
    edited(folder, complete=True, images=manifest["images"][::-1])
    refused("of other images: image 0 is img006 in it and img000 in the dataset")
    edited(folder, images=manifest["images"])
    stored = folder / "img003.ppm"
    content = stored.read_bytes()
    stored.write_bytes(content[:-2])
    refused(r"img003.ppm has 13,837 bytes instead of 13,839; make what is missing")
    stored.write_bytes(content)
    check(cached)
    for name in ("img003", "img005"):
        image = cv2.imread(str(lq / f"{name}x2.png"))
        cv2.imwrite(str(lq / f"{name}x2.png"), 255 - image)
    refused(r"the LR image of img003 is another than it was then \(and 1 more\)")
    (gt / "img006.png").unlink()
    (lq / "img006x2.png").unlink()
    refused("it is of 7 images, the dataset has 6; img006 is not in the dataset")


def test_options_that_do_not_go_with_a_cache_are_told_with_all_other_mistakes(cached, tmp_path):
    def mistakes(given: dict[str, Any]) -> str:
        with pytest.raises(OptionsError) as caught:
            load_options(given, training=True)
        return str(caught.value)

    methods = {
        "hint": {"type": "FitNet"},
        "shared": {"type": "SharedCSD", "vgg_weights": "random"},
        "zoom": {"type": "DUKD"},
        "fine": {"type": "DCKD", "vqgan_weights": "random"},
    }
    text = mistakes(changed(cached, train__distill=methods))
    assert "train.distill.hint: FitNet uses the teacher's features, and datasets.train.teacher_cache has" in text
    assert "train.distill.shared: SharedCSD uses the teacher's weights" in text
    assert "train.distill.zoom: DUKD uses the teacher on other images" in text
    assert text.startswith("the options: 3 mistakes")
    alone = without_teacher(cached)
    assert "teacher_cache: only model_type KDModel (MCADKD) has a teacher" in mistakes(alone)
    assert "has RGB in [0, 1], as images are without mean" in mistakes(
        changed(cached, datasets__train__mean=[0.5, 0.5, 0.5])
    )
    assert "val.teacher_cache: is of training only" in mistakes(changed(cached, datasets__val__teacher_cache="x"))
    missing = mistakes(changed(cached, datasets__train__teacher_cache=str(tmp_path / "none")))
    assert "none; make it by python scripts/cache_teacher.py -opt FILE" in missing

"""What is in options/compare builds, trains and resumes at reduced size, as compare_methods.py joins it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from support.shipped import reduced, train_and_resume
from support.training import changed

from basicsr.config.load import load_options

ROOT = Path(__file__).resolve().parents[2]
COMPARE = ROOT / "options/compare"
BASES = sorted(file for file in COMPARE.glob("*.yml") if "teacher" not in file.stem)
TEACHERS = sorted(file for file in COMPARE.glob("*.yml") if "teacher" in file.stem)
PIECES = sorted(COMPARE.glob("*/**/*.yml"))
assert len(BASES) >= 3 and len(TEACHERS) >= 1 and len(PIECES) >= 18


@pytest.fixture
def joined(monkeypatch, tmp_path):
    """A base with a method's piece, as a run of a study has them, without asking for the data."""
    plan = importlib.import_module("study.plan")
    monkeypatch.setattr(plan, "load_options", lambda *given, **named: load_options(*given, **{**named, "paths": False}))

    def join(base: Path, method: Path | str):
        study = plan.plan_study(base=base, name="shipped", methods=[str(method)], seeds=[0])
        return study.runs[0].options

    return join


@pytest.mark.parametrize("part", range(4))
def test_pieces_train_and_resume_bitwise(joined, part, image_pairs, tmp_path):
    runs = []
    for piece in PIECES[part::4]:
        folder = piece.relative_to(COMPARE).parts[0]
        base = next(file for file in BASES if file.stem.startswith(f"{folder}_"))
        name = piece.relative_to(COMPARE).with_suffix("").as_posix().replace("/", "_")
        runs.append(changed(reduced(joined(base, piece), image_pairs), name=name))
    train_and_resume(runs, tmp_path)


@pytest.mark.parametrize(("base", "folder"), [("small_edsr_x2", "small"), ("quickstart_x2", "quickstart")])
def test_a_small_base_takes_its_own_small_pieces_by_name(joined, base, folder):
    """The paper's discriminator has 4.38 M parameters, 64 channels in its first layer: most of a small run's time."""
    options = joined(COMPARE / f"{base}.yml", "mcadkd")
    assert options.network_d["num_feat"] == 8 and options.train.distill["contrastive"]["patch_size"] == 24
    assert joined(COMPARE / f"{base}.yml", ROOT / "options/methods/mcadkd.yml").network_d["num_feat"] == 64
    assert joined(COMPARE / "edsr_x4.yml", "mcadkd").network_d["num_feat"] == 64  # which has no pieces of its own


def test_whose_piece_is_taken_is_told(joined, monkeypatch):
    plan = importlib.import_module("study.plan")
    study = plan.plan_study(base=COMPARE / "small_edsr_x2.yml", name="told", methods=["kd", "mcadkd"], seeds=[0])
    assert study.methods["kd"] == ROOT / "options/methods/kd.yml"
    own = COMPARE / "small/mcadkd.yml"
    assert f"mcadkd is {own}, the base's own; for another give its path" in study.remarks


def test_bases_and_teachers_train_and_resume_bitwise(joined, image_pairs, tmp_path):
    bases = {file.stem: joined(file, "kd") for file in BASES}
    teachers = {file.stem: load_options(file, training=True, paths=False) for file in TEACHERS}
    runs = [changed(reduced(options, image_pairs), name=name) for name, options in (bases | teachers).items()]
    train_and_resume(runs, tmp_path)

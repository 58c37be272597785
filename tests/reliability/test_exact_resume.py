"""A run that is killed at any moment, as often as one likes, and continued equals the run that never was, bit for bit.

Kills are real (SIGKILL, by the process upon itself) and fall into training, validation and saving. Compared is
everything that a checkpoint holds, the files themselves, the figures on record, and the random states and batches that
every iteration saw.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.kills import PHASES, live, phases_on, random_kill, train_to_a_file
from support.training import changed, checkpoint_of, differences, finish, start, without_teacher

NO_ADVERSARY = {"network_d": None, "train__adversarial_opt": None, "train__optim_d": None}
PLAIN = {**NO_ADVERSARY, "train__contrastive_opt": None}
HEADS: dict[str, Any] = {
    "hint": {"type": "FitNet", "loss_weight": 1e-4},
    "attention": {"type": "AttentionTransfer"},
    "relations": {"type": "RKD"},
    "affinity": {"type": "FAKD"},
}
HISTORY: dict[str, Any] = {"history": {"type": "DCKD", "vqgan_weights": "random", "update_steps": [2, 7]}}
OTHER_TEACHER = {
    "network": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 10, "num_block": 2, "upscale": 2},
    "allow_random": True,
}
BF16 = {"amp": "bf16", "channels_last": True}
THREE = {"datasets__train__batch_size_per_gpu": 3}


def distilled(methods: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**PLAIN, "train__distill": methods, **changes}


def quantised(**changes: Any) -> dict[str, Any]:
    """A quantised student that learns from its float self and the teacher."""
    settings = {"images": 4, "ranges": "percentile"}
    return distilled({"float_self": {"type": "SelfDistillation"}}, train__quantize=settings, **changes)


@dataclass(frozen=True)
class Cell:
    """A kind of run, and in which phases it is killed, one life after the other."""

    changes: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    ranks: int = 1
    phases: tuple[str, ...] = PHASES
    teacher: bool = True
    alone: bool = False
    """Whether some iterations take LR images without HR images."""


SHORT = {
    "mcadkd, 1 worker": Cell({}, workers=1, phases=(*PHASES, "saving", "training")),
    "all heads and histories, bf16": Cell(
        {
            "train__distill": {
                **HEADS,
                **HISTORY,
                "zooms": {"type": "DUKD"},
                "mixture": {"type": "MiPKD", "feature_weight": 1e-3, "autoencoder_weight": 1e-3},
            },
            "train__accumulate": 2,
            **BF16,
            **THREE,
        },
        phases=("validating", "saving"),
    ),
    "mcadkd, 2 ranks": Cell({}, workers=1, ranks=2, phases=("training", "validating", "saving")),
    "quantised, 2 ranks": Cell(quantised(), ranks=2, phases=("training", "saving")),
    "mcadkd, some images without HR, 1 worker": Cell(workers=1, phases=("training", "saving"), alone=True),
}
LONG = {
    "scratch with a GAN": Cell({}, phases=PHASES * 2, teacher=False),
    "scratch with a GAN, 2 ranks": Cell({}, workers=1, ranks=2, teacher=False),
    "mcadkd, 2 workers": Cell({}, workers=2, phases=PHASES * 2),
    "mcadkd, 2 ranks, bf16": Cell(BF16, workers=2, ranks=2, phases=PHASES * 2),
    "mcadkd, fp16": Cell({"amp": "fp16"}, workers=1),
    "mipkd, some images without HR, 2 ranks": Cell(distilled({"mixture": {"type": "MiPKD"}}), 1, 2, alone=True),
    "heads, bf16, accumulated": Cell(
        distilled(HEADS, train__accumulate=2, **BF16, **THREE), workers=1, phases=PHASES * 2
    ),
    "heads, 2 ranks": Cell(distilled(HEADS, **THREE), ranks=2),
    "dckd": Cell(distilled(HISTORY), workers=2),
    "dckd, 2 ranks": Cell(distilled(HISTORY), workers=1, ranks=2),
    "dukd": Cell(distilled({"zooms": {"type": "DUKD"}}), workers=1),
    "mipkd, 2 ranks": Cell(distilled({"mixture": {"type": "MiPKD"}}), ranks=2),
    "csd": Cell(distilled({"csd": {"type": "CSD", "vgg_weights": "random"}}), workers=1),
    "shared csd": Cell(
        distilled(
            {"csd": {"type": "SharedCSD", "vgg_weights": "random"}}, network_t__num_block=2, train__resp_kd_opt=None
        )
    ),
    "quantised, bf16, accumulated": Cell(quantised(train__accumulate=2, **BF16), workers=1, phases=PHASES * 2),
    "two teachers": Cell(distilled({"teachers": {"type": "SeveralTeachers", "teachers": [OTHER_TEACHER]}}), workers=2),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_killed_run_ends_bitwise_equal(mcadkd, tmp_path, name):
    cell = SHORT[name]
    assert check_cell(mcadkd, tmp_path, cell) == Counter(cell.phases)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_more_than_fifty_kills_over_methods_ranks_workers_and_precisions(mcadkd, tmp_path):
    kills: Counter[str] = Counter()
    for number, (name, cell) in enumerate(LONG.items()):
        found = check_cell(mcadkd, tmp_path / str(number), cell, seed=number)
        print(f"{name}, {cell.workers} worker(s), {cell.ranks} rank(s): {dict(found)}", flush=True)
        kills += found
    print(f"{kills.total()} kills: {dict(kills)}; 0 differing bytes", flush=True)
    assert kills.total() >= 50 and min(kills[phase] for phase in PHASES) >= 15


def check_cell(options: dict[str, Any], folder: Path, cell: Cell, seed: int = 11) -> Counter[str]:
    """Runs `cell` whole and killed, asserts that both are equal, and returns how many kills fell into each phase."""
    folder.mkdir(exist_ok=True)
    options = _options_of(cell, options, folder)
    run, whole, kills, iterations = folder / "run", folder / "whole", folder / "kills", options["train"]["total_iter"]
    assert not live(options, run, cell.ranks, {})
    run.rename(whole)  # so that both were in one folder, whose name stands in their options
    (folder / "draws.txt").rename(folder / "whole draws.txt")

    generator = random.Random(seed)
    began_at = []
    for number, phase in enumerate(cell.phases):
        began_at.append(newest(run / "experiments/tiny/training_states"))
        victim = number % cell.ranks if phase != "saving" else 0  # the one that writes
        kill = random_kill(generator, phase, kills)
        assert live(options, run, cell.ranks, {victim: kill}, all_at_once=number % 3 == 2), "it ended before its kill"
    assert began_at == sorted(began_at) and began_at[-1] > 0, "no life undoes what one before it had saved"
    assert not live(options, run, cell.ranks, {})

    first, second = (root / "experiments/tiny" for root in (whole, run))
    assert differences(checkpoint_of(first, iterations), checkpoint_of(second, iterations)) == []
    assert _different_files(first, second) == []
    assert _figures(first) == _figures(second)
    draws = _lines(folder / "whole draws.txt")
    assert len(draws) == iterations * cell.ranks * options["train"].get("accumulate", 1)
    assert _lines(folder / "draws.txt") == draws, "an iteration saw other random states or images than in the whole run"
    assert not list(run.glob("experiments/*_archived_*/training_states/*.json")), "no checkpoint is set aside"
    return phases_on(kills)


def _options_of(cell: Cell, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = changed(
        options,
        train__total_iter=9 + 6 * len(cell.phases),
        train__pixel_opt={"type": "L1OnRecord", "record": str(folder / "draws"), "loss_weight": 3.0},
        logger__save_checkpoint_freq=3,
        logger__print_freq=1,
        val__val_freq=4,
        datasets__train__num_worker_per_gpu=cell.workers,
    )
    if cell.alone:  # every iteration is on the record of the loss that all have
        alone = {
            "type": "PairedImageDataset",
            "name": "alone",
            "dataroot_lq": options["datasets"]["train"]["dataroot_lq"],
        }
        record = options["train"]["pixel_opt"]
        options = changed(
            options,
            datasets__train_2={**alone, "share": 0.4},
            train__resp_kd_opt={**record, "loss_weight": 0.5},
            train__pixel_opt={"type": "L1Loss", "loss_weight": 3.0},
        )
    if not cell.teacher:
        kept = {key: options[key] for key in ("network_d",)} | {"adversary": options["train"]["adversarial_opt"]}
        options = without_teacher(options)
        options["network_d"], options["train"]["adversarial_opt"] = kept["network_d"], kept["adversary"]
    return changed(options, **cell.changes)


def newest(states: Path) -> int:
    """Iteration of the newest complete checkpoint; 0 where there is none."""
    return max((int(manifest.stem) for manifest in states.glob("*.json")), default=0)


def _lines(file: Path) -> set[str]:
    return set(file.read_text().splitlines())


def _different_files(first: Path, second: Path) -> list[str]:
    """Names of the checkpoints' files that are not equal byte for byte, or that one of the folders lacks."""
    names = {
        str(file.relative_to(root))
        for root in (first, second)
        for folder in ("models", "training_states")
        for file in (root / folder).iterdir()
        if file.is_file() and not file.name.endswith(".tmp")
    }
    pairs = {name: [root / name for root in (first, second)] for name in names}
    return sorted(
        name for name, (a, b) in pairs.items() if not (a.exists() and b.exists() and a.read_bytes() == b.read_bytes())
    )


def _figures(experiment: Path) -> list[dict[str, float]]:
    """The history of a run but for times."""
    entries = [json.loads(line) for line in (experiment / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if not key.startswith("time/")} for entry in entries]


def save_often(options: dict[str, Any]) -> dict[str, Any]:
    return changed(
        options, train__total_iter=6, logger__save_checkpoint_freq=2, logger__keep_checkpoints=2, val__val_freq=3
    )


def killed_at_a_file(options: dict[str, Any], root: Path, number: int) -> bool:
    process = start(train_to_a_file, options, str(root), number)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("number", [4, 10])
def test_a_run_killed_in_its_first_saving_goes_on(mcadkd, tmp_path, number):
    options = save_often(mcadkd)
    states = tmp_path / "experiments/tiny/training_states"
    assert killed_at_a_file(options, tmp_path, number)
    assert not live(options, tmp_path, 1, {})
    assert newest(states) == 6


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_kill_before_any_access_to_a_file_changes_nothing(mcadkd, tmp_path):
    options = save_often(mcadkd)
    run = tmp_path / "run"
    assert not live(options, run, 1, {})
    run.rename(tmp_path / "whole")
    number = 1
    while killed_at_a_file(options, run, number):
        assert not live(options, run, 1, {})
        different = _different_files(tmp_path / "whole/experiments/tiny", run / "experiments/tiny")
        # Of a checkpoint that was being deleted something may be left.
        assert [name for name in different if Path(name).stem not in ("2", "net_g_2", "net_d_2")] == [], number
        shutil.rmtree(run)
        number += 1
    print(f"{number - 1} kills, one before each access to a file; 0 differing bytes")
    assert number > 40


def test_a_bit_of_difference_would_be_seen(mcadkd, tmp_path):
    expected = finish(mcadkd, tmp_path / "one")
    other = finish(changed(mcadkd, manual_seed=4), tmp_path / "two")
    assert any(found.startswith("/g/params") for found in differences(expected, other))

"""A run of compress.py, step after step, each of which is kept."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from study.execution import environment_for, last_error, threads_for
from subprocesses import Programs, StepFailed, Stopped
from torch import nn

from basicsr.archs import build_network
from basicsr.config.load import load_options, no_warning
from basicsr.config.yaml_files import dump_yaml
from basicsr.engine.inputs import digest_of_file, input_digests
from basicsr.engine.precision_choice import choose_for_several, read_choice
from basicsr.files.atomic_files import sha256_of
from basicsr.metrics.evaluator import Evaluation
from basicsr.report.tables import write_text
from basicsr.weights.recognise import load_pretrained
from compression.candidates import COMPARED, Candidate, candidates_of, costs_of, on_the_edge, shown_cost
from compression.figures import Figures, Judged, image_digest, images_of
from compression.latencies import TEACHER, Latencies
from compression.options import Settings
from compression.progress import Progress
from compression.stages import Stages
from compression.steps import Steps, key_of
from compression.trainings import Trainer, Training, plain

BICUBIC = "bicubic"
STUDENT = "student"
CACHE_SCRIPT = Path(__file__).resolve().parents[1] / "cache_teacher.py"
_POLL_SECONDS = 0.1


def run_folder(settings: Settings) -> Path:
    """Where a run leaves everything."""
    return Path(settings.options.path.experiments_root or "experiments") / "compress" / settings.options.name


def all_candidates(settings: Settings) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates, and those that the chosen one may be compared with."""
    compress, scale = settings.compress, settings.options.scale
    compared = compress.compare
    return (
        candidates_of(compress.families, scale),
        candidates_of({COMPARED: compared}, scale, "compare") if compared is not None else [],
    )


class Pipeline:
    """A run.

    Args:
        settings: its options.
        folder: where it leaves everything; its lock is held.
        teacher: in eval mode.
        progress: where lines go.
    """

    def __init__(self, settings: Settings, folder: Path, teacher: nn.Module, progress: Progress) -> None:
        self.settings, self.folder, self.teacher, self.progress = settings, folder, teacher, progress
        self.options, self.compress = settings.options, settings.compress
        self.steps = Steps(folder)
        self.trainer = Trainer(self.steps, progress)
        self.figures = Figures(settings.judging, self.steps, progress)
        self.candidates, self.compared = all_candidates(settings)
        self.by_name = {candidate.name: candidate for candidate in (*self.candidates, *self.compared)}
        self.latencies = Latencies(settings, self.steps, progress, self.by_name, self.teacher_digest)

    @cached_property
    def teacher_digest(self) -> str:
        """SHA-256 of the teacher's file."""
        return digest_of_file(Path(str(self.options.path.pretrain_network_t)))

    @cached_property
    def image_digests(self) -> dict[str, str]:
        """Of the training and validation sets, by key."""
        found = {}
        for key, block in self.options.datasets_of("train").items():
            found[key] = image_digest(images_of(block))
        names = {block.name for block in self.options.datasets_of("val").values()}
        return found | {name: self.figures.digest(name) for name in names}

    @cached_property
    def stages(self) -> Stages:
        """The options of all trainings, whose cache is made here."""
        caches = self._caches() if self.compress.cache else {}
        return Stages(self.settings, self.folder, caches, self._precision(caches))

    def say(self, line: str) -> None:
        """Prints and keeps a line."""
        self.progress.say(line)

    def judge(self, name: str, weights: Path, pictures: bool = False) -> dict[str, Evaluation]:
        """Figures of a checkpoint's network on all sets."""
        judged = Judged(name, sha256_of(weights), lambda: load_pretrained(weights).network, pictures)
        return self.figures.judge(judged)

    def told(self, evaluations: Mapping[str, Evaluation]) -> str:
        """Average figures in words."""
        return "; ".join(
            f"{name} {', '.join(f'{metric} {value:.4f}' for metric, value in found.means().items())}"
            for name, found in evaluations.items()
        )

    # 2: the teacher

    def judge_teacher(self) -> dict[str, dict[str, Evaluation]]:
        """Figures of bicubic interpolation and of the teacher, by set."""
        bicubic = build_network({"type": "Bicubic", "upscale": self.options.scale})
        rows = [
            Judged(BICUBIC, f"x{self.options.scale}", lambda: bicubic, pictures=True),
            Judged(TEACHER, self.teacher_digest, lambda: self.teacher, pictures=True),
        ]
        return {row.name: self.figures.judge(row) for row in rows}

    def _caches(self) -> dict[str, str]:
        found = {}
        for key, block in self.options.datasets_of("train").items():
            given = block.arguments.get("teacher_cache")
            found[key] = str(given) if given is not None else self._cache(key)
        return found

    def _cache(self, key: str) -> str:
        """The folder of the teacher's outputs for a training set, which is made as far as it is not there."""
        content = Stages(self.settings, self.folder, {}).cache()
        made_from = {"version": 1, "teacher": self.teacher_digest, "images": self.image_digests[key]}
        made_from |= {"network": plain(content["network_t"]), "path": plain(content["path"])}
        made_from |= {"self_ensemble": self.compress.cache_self_ensemble, "set": plain(content["datasets"][key])}
        folder = self.folder / "teacher_cache" / f"{key}_{key_of(made_from)[:8]}"

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            file = self.folder / "options" / "teacher_cache.yml"
            file.parent.mkdir(parents=True, exist_ok=True)
            how = f"--dataset {key} --output {folder}"
            how += " --self_ensemble" if self.compress.cache_self_ensemble else ""
            line = f"# By hand: python scripts/cache_teacher.py -opt {file} {how}"
            write_text(file, f"{line}\n{dump_yaml(plain(content))}")
            self._run_cache([str(CACHE_SCRIPT), "-opt", str(file), *how.split(" ")], key, folder)
            for other in folder.parent.glob(f"{key}_????????"):
                if other != folder:  # of another teacher, or of other images
                    shutil.rmtree(other, ignore_errors=True)
            return {"folder": str(folder)}, [folder / "cache.json"]

        return str(self.steps.do(f"the teacher's outputs, {key}", made_from, work)["folder"])

    def _run_cache(self, arguments: list[str], key: str, folder: Path) -> None:
        log = self.folder / "logs" / "teacher_cache.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        count = len(images_of(self.options.datasets[key]))
        lock = os.open(self.folder / ".cache.lock", os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            with log.open("wb") as output, Programs() as programs:
                environment = environment_for(self.options, threads_for(1), 0)
                process = programs.start(
                    arguments, lock=lock, environment=environment, output=output, ends_with_us=True
                )
                while process.poll() is None:
                    done = sum(1 for _ in folder.rglob("*.ppm")) if folder.is_dir() else 0
                    self.progress.show(f"the teacher's outputs: {done} of {count} images")
                    time.sleep(10 * _POLL_SECONDS)
        finally:
            os.close(lock)
        if programs.received:
            raise Stopped
        if process.returncode != 0:
            raise StepFailed(last_error(log), process.returncode if process.returncode > 0 else 1)

    def _precision(self, caches: Mapping[str, str]) -> dict[str, str]:
        """What `amp: auto` is in all trainings."""
        if "auto" not in (self.options.amp, self.options.amp_teacher):
            return {}
        file = self.folder / "precision.json"
        if (choice := read_choice(file)) is None:
            content = Stages(self.settings, self.folder, caches).search(self.candidates[0], 0)
            choice = choose_for_several(load_options(content, training=True, warn=no_warning), file)
            self.say(f"{choice.reason}; in all trainings")
        return dict(choice.kept())

    # 3: what candidates cost

    def count(self) -> dict[str, dict[str, int]]:
        """Parameters and multiply-adds of all candidates, as they are shipped."""
        blocks = {name: plain(candidate.block) for name, candidate in self.by_name.items()}
        made_from = {"version": 1, "candidates": blocks, "size": list(self.compress.latency.size)}

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            found = {}
            for number, (name, candidate) in enumerate(self.by_name.items(), 1):
                self.progress.show(f"counting: {number} of {len(self.by_name)}")
                costs = costs_of(candidate, self.compress.latency.size)
                found[name] = {"parameters": costs.parameters, "multiply_adds": costs.multiply_adds}
            return found, []

        return {name: dict(found) for name, found in self.steps.do("counts", made_from, work).items()}

    def choose(self) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """The candidates on the budget's edge, and what all that were counted or timed cost."""
        budget = self.compress.budget
        costs: dict[str, dict[str, Any]] = {name: dict(found) for name, found in self.count().items()}
        names = [candidate.name for candidate in self.candidates]
        self.say(f"{len(names)} candidates, of {len(self.compress.families)} families")
        families = {candidate.name: candidate.family for candidate in self.candidates}
        labels = {candidate.name: candidate.label for candidate in self.candidates}

        def edge() -> list[str]:
            of_kind = {name: float(costs[name][budget.kind]) for name in names}
            chosen, remark = on_the_edge(of_kind, families, budget, self.compress.search.candidates, labels)
            if remark:
                self.say(remark)
            return chosen

        if budget.kind == "ms":
            self._add_times(costs, names)
            chosen = edge()
        else:
            chosen = edge()
            self._add_times(costs, chosen)
        for name in chosen:
            self.say(f"  {labels[name]}: {self._cost_text(costs[name])}")
        return chosen, costs

    def _add_times(self, costs: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
        found = self.latencies.of_candidates(names)
        if doubts := [figure.doubt for figure in found.values() if figure.doubt]:
            self.say(f"{len(doubts)} of {len(found)} latencies are no figures to quote: {doubts[0]}")
        for name, figure in found.items():
            costs.setdefault(name, {}).update(ms=figure.median_ms, latency=figure.model_dump(mode="json"))

    def _cost_text(self, cost: Mapping[str, Any]) -> str:
        known = [kind for kind in ("ms", "parameters", "multiply_adds") if kind in cost]
        return ", ".join(shown_cost(kind, cost[kind]) for kind in known)

    # 4: the search

    def search(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Brief trainings with successive halving; all that were tried, the winner first, and how far each came."""
        search = self.compress.search
        left, tried = list(names), dict[str, dict[str, Any]]()
        for rung in range(search.rungs):
            trainings = [
                Training(
                    f"search_rung{rung + 1}_{name}",
                    self.by_name[name].label,
                    self.stages.search(self.by_name[name], rung),
                    self.inputs(),
                    keeps=False,
                )
                for name in left
            ]
            iterations = search.iterations * search.eta**rung
            what = f"search, rung {rung + 1} of {search.rungs}, to iteration {iterations}"
            self.say(f"{what}: {len(left)} candidate{'s' if len(left) > 1 else ''}")
            outcomes = self.trainer.run(trainings, what, search.jobs)
            for name, training in zip(left, trainings, strict=True):
                figure = outcomes[training.name]["values"][self.figures.first][self.figures.metric]
                entry = tried.setdefault(name, {"name": name, "rungs": []})
                entry["rungs"].append({"iterations": iterations, "figure": figure})
            left.sort(key=lambda name: -self.sign * tried[name]["rungs"][-1]["figure"])
            if rung + 1 < search.rungs:
                left = left[: math.ceil(len(left) / search.eta)]
        order = sorted(
            tried.values(), key=lambda entry: (-len(entry["rungs"]), -self.sign * entry["rungs"][-1]["figure"])
        )
        return order

    @property
    def sign(self) -> int:
        """1 where a larger figure is better, else -1."""
        from basicsr.metrics import better_direction

        return 1 if better_direction(self.options.val.metrics[self.figures.metric]) == "higher" else -1

    def inputs(self, weights: Path | None = None) -> dict[str, Any]:
        """Digests of what a training reads."""
        inputs: dict[str, Any] = {"images": self.image_digests, "teacher": self.teacher_digest}
        inputs["files"] = {
            key: digest for key, digest in input_digests(self.options).items() if not key.startswith("path.")
        }
        return inputs | ({"weights": sha256_of(weights)} if weights is not None else {})

    # 5: the long training

    def distil(self, candidate: Candidate, seed: int | None = None) -> Path:
        """The weights of a student's long training."""
        content = self.stages.distil(candidate, seed)
        training = Training(content["name"], f"distilling {candidate.label}", content, self.inputs())
        of_seed = f", seed {seed}" if seed is not None else ""
        self.say(f"{training.label}{of_seed}: {content['train']['total_iter']} iterations")
        self.trainer.run([training], "distilling")
        return self.trainer.weights(training)

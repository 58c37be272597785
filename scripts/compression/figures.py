"""Figures of networks and files on the validation and test sets, kept as steps."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from basicsr.config.schema import DatasetOptions, Options, thaw
from basicsr.data import build_eval_dataset
from basicsr.data.checks.notes import digests_of
from basicsr.data.loading import build_dataset
from basicsr.data.storage import stored_images
from basicsr.engine.validation import save_result
from basicsr.inference.file_networks import FileNetwork
from basicsr.inference.trials import for_colours
from basicsr.metrics.evaluator import Evaluation, evaluate, image_names
from basicsr.report.comparison import SavedPictures
from basicsr.runtimes.base import runtime_for
from basicsr.utils.errors import Interrupted
from compression.progress import Progress
from compression.steps import Steps, key_of
from compression.trainings import plain

_VERSION = 1
SUFFIX = "result"
"""Ends the names of saved pictures."""


@dataclass(frozen=True)
class Judged:
    """What is judged.

    Attributes:
        name: of its row, and of the folder of its pictures.
        digest: of what it is made from: its weights or its file.
        build: gives the network, in eval mode.
        pictures: whether its outputs are saved, for the report.
    """

    name: str
    digest: str
    build: Callable[[], nn.Module]
    pictures: bool = False


def of_file(name: str, path: Path, digest: str, threads: int, pictures: bool = False) -> Judged:
    """An exported file, run by its runtime."""

    def build() -> nn.Module:
        return FileNetwork(runtime_for(path).load(path, threads=threads), path.name)

    return Judged(name, f"{digest} {runtime_for(path).version()}", build, pictures)


class Figures:
    """Judges networks and files on all sets of the options.

    Args:
        options: of the run; `val` says how.
        steps: of the run.
        progress: where lines go.
    """

    def __init__(self, options: Options, steps: Steps, progress: Progress) -> None:
        self._options, self._steps, self._progress = options, steps, progress
        self.blocks: dict[str, DatasetOptions] = {
            block.name: block for block in options.datasets_of("val", "test").values()
        }
        self.first = next(iter(block.name for block in options.datasets_of("val").values()))
        self.metric = next(iter(options.val.metrics))
        self.folder = steps.folder / "pictures"

    @functools.cached_property
    def datasets(self) -> dict[str, Any]:
        """The sets by name."""
        return {name: build_eval_dataset(block) for name, block in self.blocks.items()}

    @functools.cache  # noqa: B019 - one object for a run
    def digest(self, name: str) -> str:
        """Of a set's images and of how it is judged."""
        options = plain({"metrics": thaw(self._options.val.metrics), "set": thaw(self.blocks[name])})
        return key_of({"options": options, "images": image_digest(self.datasets[name])})

    def judge(self, judged: Judged, sets: Sequence[str] | None = None) -> dict[str, Evaluation]:
        """Figures by set, as a step each."""
        network: list[nn.Module] = []
        found = {}
        for name in sets or self.blocks:
            made_from = {"version": _VERSION, "what": judged.digest, "set": self.digest(name)}
            made_from |= {"pictures": judged.pictures, "metrics": list(self._options.val.metrics)}

            def work(name: str = name) -> tuple[Mapping[str, Any], Sequence[Path]]:
                if not network:
                    network.append(judged.build())
                return self._evaluated(judged, name, network[0])

            found[name] = from_json(self._steps.do(f"figures {judged.name}, {name}", made_from, work))
        return found

    def _evaluated(self, judged: Judged, name: str, network: nn.Module) -> tuple[Mapping[str, Any], list[Path]]:
        dataset, val, files = self.datasets[name], self._options.val, list[Path]()

        def save(image: str, pixels: np.ndarray) -> None:
            path = self.folder / judged.name / name / f"{image}_{SUFFIX}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_result(dataset, pixels, path)
            files.append(path)

        def shown(indices: Any) -> Any:
            for number, index in enumerate(indices):
                self._progress.show(f"{judged.name} on {name}: image {number + 1} of {len(dataset)}")
                yield index

        evaluation = evaluate(
            for_colours(network) if dataset[0]["lq"].shape[0] == 3 else network,
            dataset,
            val.metrics,
            torch.device("cpu"),
            scale=self._options.scale,
            tile=val.tile,
            tile_overlap=val.tile_overlap,
            save_image=save if judged.pictures else None,
            progress=shown,
        )
        if evaluation is None:
            raise Interrupted("interrupted")
        return to_json(evaluation), files

    def value_of(self, network: nn.Module) -> float:
        """A network's figure by which students are chosen, measured now."""
        metric = {self.metric: self._options.val.metrics[self.metric]}
        scale, dataset = self._options.scale, self.datasets[self.first]
        found = evaluate(network, dataset, metric, torch.device("cpu"), scale=scale)
        assert found is not None
        return found.means()[self.metric]

    def pictures(self) -> SavedPictures:
        """The saved outputs, for the report."""
        names = {name: image_names(dataset) or [] for name, dataset in self.datasets.items()}
        return SavedPictures(self.datasets, names, self.folder, True, SUFFIX)

    def value(self, evaluations: Mapping[str, Evaluation]) -> float:
        """The figure by which students are chosen: the first metric on the first validation set."""
        return evaluations[self.first].means()[self.metric]


def images_of(block: DatasetOptions) -> Any:
    """A training set, without the teacher's outputs."""
    framework = {name: getattr(block, name) for name in ("name", "phase", "scale")}
    arguments = {name: value for name, value in block.arguments.items() if name != "teacher_cache"}
    return build_dataset({"type": block.type, **arguments, **framework})


def image_digest(dataset: Any) -> str:
    """SHA-256 of the names and contents of a dataset's files."""
    stored = stored_images(dataset)
    digest = hashlib.sha256()
    for role, root in sorted((stored.roots if stored is not None else {}).items()):
        assert stored is not None
        files = stored.files[role]
        for name, content in zip(files, digests_of(files, root), strict=True):
            digest.update(f"{role} {root.relative(name)} {content}\n".encode())
    return digest.hexdigest()


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON."""
    return {
        "metrics": list(evaluation.metrics),
        "images": list(evaluation.images),
        "values": evaluation.values.tolist(),
        "seconds": evaluation.seconds.tolist(),
    }


def from_json(content: Mapping[str, Any]) -> Evaluation:
    """An evaluation of `to_json`."""
    values = np.array(content["values"], dtype=np.float64).reshape(len(content["images"]), len(content["metrics"]))
    seconds = np.array(content["seconds"], dtype=np.float64)
    return Evaluation(tuple(content["metrics"]), tuple(content["images"]), values, seconds)

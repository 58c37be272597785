"""Runs a network over a dataset: metrics per image, shared among ranks, equal to one rank's figures."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import nn

from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.inference.file_networks import FileNetwork
from basicsr.inference.runner import ImageRunner
from basicsr.metrics import bound_metric, takes_tensors, traits_of
from basicsr.metrics.metric_util import NoFigureWarning
from basicsr.utils.dist_util import gather_objects, get_dist_info, raise_together
from basicsr.utils.errors import DataError, NonFiniteError
from basicsr.utils.misc import wait_for
from basicsr.utils.precision import Amp, Precision


class EvaluationDataset(Protocol):
    """Items are dicts with `lq` (C, h, w), `lq_path`, and `gt` (C, sh, sw) where there is an HR image.

    Images lie in [0, 1]; a dataset of another range has a method `restored` that brings them, and outputs, there. A
    dataset that names its images, no two alike, has a list `names`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Evaluation:
    """Figures of one network on one dataset."""

    metrics: tuple[str, ...]
    images: tuple[str, ...]  # in the dataset's order
    values: np.ndarray  # float64 (images, metrics)
    seconds: np.ndarray  # float64 (images,), of the forward pass

    def means(self) -> dict[str, float]:
        """Average over the images, by metric."""
        return dict(zip(self.metrics, self.values.mean(0).tolist(), strict=True))


SaveImage = Callable[[str, np.ndarray], None]


def image_name(lq_path: str) -> str:
    """An image's name in tables and files: its LR file's name without the ending, or its LMDB key."""
    name = Path(lq_path).name
    return name[: -len(Path(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name


def image_names(dataset: EvaluationDataset) -> list[str] | None:
    """Names of a dataset's images, if it has them, or a list `paths`; DataError if two have one name."""
    known, paths = getattr(dataset, "names", None), getattr(dataset, "paths", None)
    if not isinstance(paths, Sequence) or len(paths) != len(dataset):
        return None
    files: list[Any] = [entry.get("lq_path") if isinstance(entry, Mapping) else entry for entry in paths]
    if known is None and not all(isinstance(file, str) for file in files):
        return None
    names: dict[str, tuple[int, Any]] = {}
    for number, file in enumerate(files):
        name = image_name(file) if known is None else known[number]
        other, before = names.setdefault(name, (number, file))
        if other != number and before == file:
            raise DataError(f"{file} is listed twice; name each image of a validation or test set once")
        if other != number:
            raise DataError(f"{before} and {file} would both be called {name} in the results; rename one")
    return list(names)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    dataset: EvaluationDataset,
    metrics: Mapping[str, Mapping[str, Any]],
    device: torch.device,
    *,
    scale: int = 1,
    self_ensemble: bool = False,
    tile: int | None = None,
    tile_overlap: int | None = None,
    amp: Amp = "none",
    save_image: SaveImage | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Evaluation | None:
    """Evaluates a network; each rank takes every world-size-th image. All ranks must call, and all get the result.

    The network, or `FileNetwork`, maps (1, C, h, w) to (1, C, sh, sw); it runs in eval mode, as `ImageRunner` says, and
    is left as it was.
    Metrics that need HR images are skipped where there are none. `save_image` gets an image's name and result, uint8
    HWC BGR, or of bands float32 HWC in [0, 1]. If `should_stop` is true on any rank before an image, the result is
    None.

    Raises:
        NonFiniteError: the network's output is not finite, on any rank.
        UserError: an image cannot be read or measured, or two have one name, on any rank.
    """
    rank, world_size = get_dist_info()
    restored: Callable[[torch.Tensor], torch.Tensor] = getattr(dataset, "restored", lambda images: images)
    rows: dict[int, tuple[str, list[float]]] = {}
    stopped, failure = False, None
    runner = ImageRunner(
        network,
        scale,
        device,
        tile=tile,
        tile_overlap=tile_overlap,
        self_ensemble=self_ensemble,
        precision=Precision(device.type, amp),
        only_size=getattr(network, "only_size", None),
        follows_pooling=not isinstance(network, FileNetwork),
    )
    try:
        known_names = image_names(dataset)
        first, count = dataset[0], len(dataset)
        if "gt" not in first:
            metrics = {name: block for name, block in metrics.items() if not traits_of(block).needs_reference}
        kinds = ("img", "img2") if "gt" in first else ("img",)
        measures = {name: (bound_metric(block, kinds), takes_tensors(block)) for name, block in metrics.items()}
        for index in progress(range(rank, count, world_size)):
            if stopped := should_stop():
                break
            item = dataset[index] if index > 0 else first
            path = item["lq_path"]
            name = image_name(path) if known_names is None else known_names[index]
            lq = item["lq"].unsqueeze(0).to(device)
            wait_for(device)
            start = time.perf_counter()
            output = runner(lq)  # on the CPU, so it is there
            seconds = time.perf_counter() - start
            values = output.detach().numpy()
            if not np.isfinite([values.min(), values.max()]).all():  # without a mask of the image's size
                raise NonFiniteError(
                    f"{type(network).__name__} makes values of {path} that are not finite; its weights are damaged or"
                    " its training diverged"
                )
            output = restored(output)
            images = {"img": output, **({"img2": restored(item["gt"].unsqueeze(0))} if "gt" in item else {})}
            arrays: dict[str, Any] = {}  # made only if needed
            tensors: dict[str, Any] = {}
            figures = []
            for metric, (measure, on_tensors) in measures.items():
                if on_tensors:
                    tensors = tensors or {key: image.to(device) for key, image in images.items()}
                else:
                    arrays = arrays or {key: _to_bgr(image) for key, image in images.items()}
                figures.append(_measured(metric, measure, tensors if on_tensors else arrays, path))
            rows[index] = name, [*figures, seconds]
            if save_image is not None:
                if output.shape[1] in (1, 3):
                    save_image(name, arrays["img"] if arrays else _to_bgr(output))
                else:
                    save_image(name, np.ascontiguousarray(output[0].float().clamp(0, 1).permute(1, 2, 0).numpy()))
    except Exception as error:  # a dataset of the user's own raises anything
        failure = error  # raised when the other ranks know, so that they do not wait for this one
    raise_together(failure)
    shares = gather_objects((stopped, count, tuple(metrics), rows))
    if any(share[0] for share in shares):
        return None
    if len({share[1:3] for share in shares}) > 1:
        differ = DataError(
            "the ranks evaluate other datasets or by other metrics: "
            + "; ".join(f"rank {rank} {share[1]} images by {', '.join(share[2])}" for rank, share in enumerate(shares))
        )
        differ.known_to_all = True
        raise differ
    every = {index: row for share in shares for index, row in share[3].items()}
    names = tuple(every[index][0] for index in range(count))
    table = np.array([every[index][1] for index in range(count)], dtype=np.float64).reshape(count, len(metrics) + 1)
    return Evaluation(tuple(metrics), names, table[:, :-1], table[:, -1])


def _to_bgr(image: torch.Tensor) -> np.ndarray:
    """As `tensor2img` of (1, C, H, W), in fewer passes and by NumPy: PyTorch's threads wait for each other.

    Of other than 1 or 3 channels (H, W, C) in their order.
    """
    planes = np.clip(image[0].detach().float().cpu().numpy(), 0, 1)
    planes *= 255
    levels = np.rint(planes, out=planes).astype(np.uint8)
    if len(levels) == 1:
        return levels[0]
    return np.asarray(cv2.merge(list(levels[::-1] if len(levels) == 3 else levels)))


def _measured(metric: str, measure: Callable[[Mapping[str, Any]], Any], images: Mapping[str, Any], path: str) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoFigureWarning)
            return float(measure(images))
    except (DataError, NoFigureWarning) as error:
        raise DataError(f"metric {metric} of {path}: {error}") from error

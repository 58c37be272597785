"""Where a run's figures and images go: TensorBoard, Weights & Biases, the history. All get the same names."""

from __future__ import annotations

import json
import os
import secrets
import struct
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import torch

from basicsr.config.schema import Options, flat, thaw
from basicsr.data.base import EvaluationDataset
from basicsr.files.atomic_files import write_atomically
from basicsr.files.images import shown_channels, tensor2img
from basicsr.files.regular_files import read_regular
from basicsr.files.run_history import HISTORY, ITERATION, History
from basicsr.inference.runner import ImageRunner
from basicsr.utils.errors import CheckpointError, MachineError, UserError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.matlab_functions import imresize

if TYPE_CHECKING:
    from basicsr.models.kd_model import Teacher

_WANDB_FILE = "wandb.json"
_WANDB_SECONDS = 30  # to reach the server
_LENGTH = struct.Struct("<Q")  # before each record of an event file
_CHECKSUM = 4  # bytes after the length, and after the record
_LARGEST = 512  # pixels a side that are shown of an image
_GAP, _CAPTION = 4, 22  # pixels between columns, and above them
_PAPER, _INK = 255, 32  # gray levels


class MetricWriter(Protocol):
    """Takes a run's figures, on rank 0."""

    shows_images: bool  # whether `image` does anything
    needed: bool  # whether training ends, after saving, where it cannot be written; else it goes on with a warning

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Takes figures of an iteration, by their whole names; iterations never decrease."""

    def image(self, name: str, iteration: int, image: np.ndarray) -> None:
        """Takes an image, uint8 (H, W, 3) BGR."""

    def close(self, exit_code: int) -> None:
        """Writes what is pending; 0 says that the run came to its end."""


def check_packages(options: Options) -> None:
    """Raises MachineError where what `logger` asks for is not installed."""
    if options.logger.wandb is not None and options.logger.wandb.project is not None:
        _import_wandb()


def open_metric_writers(options: Options, text: str, start: int, validating: bool) -> list[MetricWriter]:
    """Opens what `logger` asks for, and the history, in the folder of the run; `text` are its options as YAML.

    Figures that a killed run has left of iterations after `start` are removed; with `validating`, the metrics of
    `start` too. Raises MachineError where Weights & Biases is not installed or cannot be reached, CheckpointError or
    DataError where the history cannot be written, or is damaged.
    """
    writers: list[MetricWriter] = []
    try:
        writers.append(History(options.experiment_folder / HISTORY, start, validating))
        if options.logger.wandb is not None and options.logger.wandb.project is not None:
            writers.append(_Wandb(options, start))
        if options.logger.use_tb_logger:
            try:
                writers.append(_TensorBoard(options, text, start, validating))
            except CheckpointError as error:
                get_root_logger().warning(f"{error}; training goes on without them")
    except UserError:
        for writer in writers:
            writer.close(1)
        raise
    return writers


class _TensorBoard:
    """TensorBoard's files in tb_logger/NAME, with the options as text and as hyperparameters."""

    shows_images = True
    needed = False

    def __init__(self, options: Options, text: str, start: int, validating: bool) -> None:
        _quiet_writers()
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        again = ("options/", "_hparams_", *(("metrics/", "images/") if validating else ()))
        _remove_events(
            options.tensorboard_folder,
            lambda name, step: step > start or (step == start and name.startswith(again)),
        )
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in flat(thaw(options)).items()
        }
        # `add_hparams` would open a run of its own. Without the experiment's summary (the first of the three)
        # TensorBoard puts the table together from all runs that it finds.
        _, session, _ = hparams(plain, {})
        with _os_errors_named():
            self._writer = SummaryWriter(str(options.tensorboard_folder), purge_step=start + 1 if start else None)
            self._writer.add_text("options", textwrap.indent(text, "    "), start)  # Markdown's code block
            events = self._writer.file_writer
            assert events is not None, "it is opened with the writer"
            events.add_summary(session, start)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        with _os_errors_named():
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)

    def image(self, name: str, iteration: int, image: np.ndarray) -> None:
        with _os_errors_named():
            self._writer.add_image(name, image[..., ::-1], iteration, dataformats="HWC")

    def close(self, exit_code: int) -> None:
        with _os_errors_named():
            self._writer.close()


def _quiet_writers() -> None:
    """Keeps TensorBoard's thread from printing a traceback where it cannot write: the reason is logged in a line."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread" or not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = hook


@contextmanager
def _os_errors_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write TensorBoard's files: {error.strerror or error}") from error


def _remove_events(folder: Path, is_void: Callable[[str, int], bool]) -> None:
    """Removes matching events, by name and step, and an incomplete last record from the event files of a folder.

    `purge_step` is not enough: it only makes TensorBoard hide them, and other readers of the files would find steps
    twice. What cannot be read is left alone, with a warning; raises CheckpointError where a file cannot be written.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            content = read_regular(path)
        except OSError as error:
            get_root_logger().warning(f"cannot read {path}: {error.strerror}; steps in it may be logged twice")
            continue
        kept = b"".join(_kept_records(content, is_void))
        if len(kept) != len(content):
            _replace(path, kept)


def _replace(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def _kept_records(content: bytes, is_void: Callable[[str, int], bool]) -> Iterator[bytes]:
    """The records that stay; a record is a length, its checksum, an event, and its checksum."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    start = 0
    while start + _LENGTH.size <= len(content):
        body = start + _LENGTH.size + _CHECKSUM
        end = body + _LENGTH.unpack_from(content, start)[0] + _CHECKSUM
        if end > len(content):
            return
        try:
            event: Any = Event.FromString(content[body : end - _CHECKSUM])
        except DecodeError:
            return
        if not event.HasField("summary") or not any(is_void(value.tag, event.step) for value in event.summary.value):
            yield content[start:end]
        start = end


class _Wandb:
    """A run at Weights & Biases, the same one when training is resumed; its files are in experiments/NAME/wandb.

    W&B takes no figures of steps that it has passed. Iterations that are repeated after a resume from an older
    checkpoint are therefore left out: they give the same figures. Their curves are drawn over `iter`.

    Raises MachineError where the package is missing, nobody is logged in, or the server cannot be reached.
    """

    shows_images = True
    needed = False

    def __init__(self, options: Options, start: int) -> None:
        wandb = _import_wandb()
        asked = options.logger.wandb
        assert asked is not None
        self._wandb, self._start = wandb, start
        self._file = options.experiment_folder / _WANDB_FILE
        known = _read_state(self._file)
        self._id = asked.resume_id or known.get("id") or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=asked.project,
                name=options.name,
                id=self._id,
                resume="allow",
                mode="offline" if asked.mode == "offline" else None,  # None heeds WANDB_MODE, else it is online
                dir=str(options.experiment_folder),
                config=thaw(options),
                allow_val_change=True,  # options may change when a run is resumed
                settings=wandb.Settings(console="off", quiet=True, init_timeout=_WANDB_SECONDS),
            )
        except Exception as error:  # wandb's errors have no common base in all its versions
            reason = " ".join(str(error).split())[:200].rstrip(". ")
            raise MachineError(
                f"Weights & Biases cannot be used: {reason}; log in by `wandb login`, or write logger: wandb: mode:"
                " offline, and `wandb sync` later"
            ) from error
        self._run.define_metric("*", step_metric=ITERATION)
        self._passed = max(known["iter"] if known.get("id") == self._id else 0, self._run.step - 1)
        self._remember(self._passed)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._log(iteration, values)
        if iteration > self._passed:
            self._remember(iteration)

    def image(self, name: str, iteration: int, image: np.ndarray) -> None:
        self._log(iteration, {name: self._wandb.Image(np.ascontiguousarray(image[..., ::-1]))})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)

    def _log(self, iteration: int, values: Mapping[str, Any]) -> None:
        if self._start < iteration < self._passed:
            return
        self._run.log({ITERATION: iteration, **values}, step=max(iteration, self._passed + 1))

    def _remember(self, iteration: int) -> None:
        content = json.dumps({"id": self._id, "iter": iteration}).encode()
        _replace(self._file, content)


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MachineError(
            f"logger: wandb needs the package wandb ({error}); install it: pip install -e .[wandb]"
        ) from error
    return wandb


def _read_state(path: Path) -> dict[str, Any]:
    """The id and last iteration of the run at W&B; nothing where the file is damaged, with a warning."""
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(read_regular(path))
        return {"id": str(content["id"]), "iter": int(content["iter"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        get_root_logger().warning(
            f"{path} is damaged: a new run begins at W&B; to go on with the old one, name it by wandb: resume_id"
        )
        return {}


class ComparisonImages:
    """Makes pictures of columns: LR enlarged by bicubic interpolation, output, teacher's output, HR.

    A column without its image is left out. What does not change in the run is made once for each validation set.
    """

    def __init__(
        self, options: Options, sets: Mapping[str, EvaluationDataset], teacher: Teacher | None, device: torch.device
    ) -> None:
        self._options, self._sets, self._teacher, self._device = options, sets, teacher, device
        self._fixed: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, dataset: str, output: np.ndarray) -> np.ndarray:
        """The picture, uint8 (H, W, 3) BGR, for a set's first image, of which `output` is the network's output."""
        if dataset not in self._fixed:
            self._fixed[dataset] = self._others(dataset)
        (first, bicubic), *after = self._fixed[dataset].items()
        name = "student" if self._teacher is not None else "output"
        return side_by_side({first: bicubic, name: centre(output), **dict(after)})

    def _others(self, dataset: str) -> dict[str, np.ndarray]:
        """All columns but the output's."""
        images, teacher = self._sets[dataset], self._teacher
        item, scale, val = images[0], self._options.scale, self._options.val
        columns = {"LR, bicubic": imresize(images.restored(item["lq"]), scale)}
        if teacher is not None:
            runner = ImageRunner(
                teacher.network,
                scale,
                self._device,
                tile=val.tile,
                tile_overlap=val.tile_overlap,
                precision=teacher.precision,
            )
            columns["teacher"] = images.restored(runner(item["lq"].unsqueeze(0)))
        if "gt" in item:
            columns["HR"] = images.restored(item["gt"])
        return {name: centre(tensor2img(shown_channels(column))) for name, column in columns.items()}


def centre(image: np.ndarray) -> np.ndarray:
    """The middle of an image (H, W) or (H, W, 3), at most 512 pixels a side, as (h, w, 3)."""
    height, width = image.shape[:2]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    middle = image[top : top + _LARGEST, left : left + _LARGEST]
    return middle if middle.ndim == 3 else middle[..., None].repeat(3, axis=2)


def side_by_side(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sets images of one height, uint8 (H, W, 3), side by side, with gaps of 4 pixels and captions of 22 above."""
    captioned = []
    for name, image in columns.items():
        head = np.full((_CAPTION, image.shape[1], 3), _PAPER, np.uint8)
        cv2.putText(head, name, (2, _CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (_INK,) * 3, 1, cv2.LINE_AA)
        gap = np.full((_CAPTION + image.shape[0], _GAP, 3), _PAPER, np.uint8)
        captioned += [np.concatenate([head, image]), gap]
    return np.concatenate(captioned[:-1], axis=1)

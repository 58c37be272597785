"""Whether networks, losses and images fit each other, tried on one small image before a run begins.

What does not fit is refused in one line that names the option to change. Nothing of the run is changed by it: networks
are copied (`inference/probing.py`), datasets are asked for a sample as evaluation asks them.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from basicsr.config.schema import DatasetOptions, Options
from basicsr.data.base import load_sample
from basicsr.data.batch import in_unit_range
from basicsr.data.sampling import SampleKey
from basicsr.data.storage import stored_images
from basicsr.distill.base import LossTerm
from basicsr.distill.several_teachers import SeveralTeachers
from basicsr.engine.training_run import TrainingRun
from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import HeaderError
from basicsr.inference.probing import Outcome, Shape, Trial
from basicsr.metrics.traits import arguments_of
from basicsr.models.adversary import Adversary
from basicsr.utils.dist_util import raise_together
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError, UserError
from basicsr.utils.precision import Precision

_TRIED = 8  # samples, until one can be read; bad images are told by the check of images, which comes next
_IN_KEYS = ("num_in_ch", "in_chans", "img_channel", "inp_channels", "in_channels", "in_nc", "n_colors")
_ODD = (67, 61)  # sides of which no network's windows or halvings are a divisor
_SMALL = 48
_SIZES = 64  # at most so many different ones of a set are tried
_OUT_KEYS = ("num_out_ch", "out_channels", "out_nc")


@dataclass(frozen=True)
class Images:
    """What one sample shows of a dataset.

    Attributes:
        label: how the options call it, 'datasets.train'.
        block: its options.
        lq: LR image (C, h, w).
        gt: HR image (C, sh, sw); None where there is none.
        dataset: itself.
    """

    label: str
    block: DatasetOptions
    lq: Tensor
    gt: Tensor | None
    dataset: Any

    @property
    def shape(self) -> Shape:
        """Of the LR image."""
        channels, height, width = self.lq.shape
        return channels, height, width


def check_fit(run: TrainingRun) -> list[str]:
    """Tries student, teachers, discriminator and losses on the training images, the student on all validation sets.

    All ranks must call. Under `--debug` the traceback of a network's own error is printed.

    Returns:
        Remarks for the log.

    Raises:
        OptionsError: something does not fit.
        NonFiniteError: a network puts out values that are not finite.
    """
    remarks: list[str] = []
    failure: Exception | None = None
    try:
        remarks = _check(run)
    except Exception as error:
        failure = error
        if run.options.name.startswith("debug") and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    raise_together(failure)
    return remarks


def _check(run: TrainingRun) -> list[str]:
    options, device = run.options, run.rank_info.device
    student = Trial("network_g", run.network, device, Precision(device.type, run.precision.kept()["amp"]))
    key, block = next(iter(options.datasets_of("train").items()))
    images = _images(f"datasets.{key}", block, run.loader.dataset)
    if images is not None:
        _check_training(run, student, images)
    remarks: list[str] = []
    for found in evaluation_images(options, run.validation):
        remarks += check_evaluation(student, options.network_g, found, options)
    return remarks


def _check_training(run: TrainingRun, student: Trial, images: Images) -> None:
    options, device = run.options, run.rank_info.device
    _check_pair(images, options.scale)
    sides = [side // options.scale for side in images.block.gt_sizes or ()]
    shapes: list[Shape] = [(images.shape[0], side, side) for side in sides] or [images.shape]
    outputs = _check_on_patches(student, options.network_g, images, shapes, options.scale)
    for teacher, block in _teachers(run, device):
        others = _check_on_patches(teacher, block, images, shapes, options.scale)
        if others[0][0] != outputs[0][0]:
            raise OptionsError(
                f"{teacher.name} gives {_counted(others[0][0])}, {student.name} {outputs[0][0]}: teacher and student"
                " must give images alike"
            )
    if run.adversary is not None:
        _check_discriminator(run, run.adversary, outputs)
    smallest = min(outputs, key=lambda shape: shape[1] * shape[2])
    for term in run.terms.values():
        cast(LossTerm, term).check_output(smallest)


def _check_on_patches(
    trial: Trial, network_block: Mapping[str, Any] | None, images: Images, shapes: Sequence[Shape], scale: int
) -> list[Shape]:
    """The shapes of a network's outputs for patches of `shapes`."""
    channels = [_checked(trial, network_block, images, shape, scale)[0] for shape in shapes]
    _check_values(trial, network_block, images)
    return [(made, shape[1] * scale, shape[2] * scale) for made, shape in zip(channels, shapes, strict=True)]


def check_evaluation(
    trial: Trial, network_block: Mapping[str, Any] | None, images: Images, options: Options
) -> list[str]:
    """Tries a network on a validation or test set.

    Returns:
        A remark where a metric's `test_y_channel` means nothing.

    Raises:
        OptionsError: they do not fit.
        NonFiniteError: the network puts out values that are not finite.
    """
    _check_pair(images, options.scale)
    channels, height, width = images.shape
    largest = options.val.tile or max(height, width)
    shape = channels, min(height, largest), min(width, largest)
    made = _checked(trial, network_block, images, shape, options.scale)
    if options.val.tile is None and trial.outcome((channels, *_ODD)).made is None:
        for size in _lr_sizes(images.dataset):
            _checked(trial, network_block, images, (channels, *size), options.scale)
    _check_values(trial, network_block, images)
    luma = [name for name, block in options.val.metrics.items() if arguments_of(block).get("test_y_channel")]
    if made[0] != 1 or not luma:
        return []
    return [f"{images.label} ({images.block.name}) has one channel: test_y_channel of {', '.join(luma)} has no effect"]


def check_teacher(options: Options, network: nn.Module, device: torch.device) -> None:
    """Tries a teacher whose outputs for RGB images are to be kept.

    Raises:
        OptionsError: it does not make RGB images of RGB images, at the options' scale.
        NonFiniteError: it puts out values that are not finite.
    """
    key, block = next(iter(options.datasets_of("train").items()))
    side, scale = _SMALL, options.scale
    lq, gt = torch.full((3, side, side), 0.5), torch.full((3, side * scale, side * scale), 0.5)
    images = Images(f"datasets.{key}", block, lq, gt, None)
    _check_on_patches(Trial("network_t", network, device), options.network_t, images, [images.shape], scale)


def evaluation_images(options: Options, datasets: Mapping[str, Any]) -> Iterator[Images]:
    """One image of each validation and test set, as far as they can be read; `datasets` by their names."""
    for key, block in options.datasets_of("val", "test").items():
        images = _images(f"datasets.{key}", block, datasets[block.name]) if block.name in datasets else None
        if images is not None:
            yield images


def _images(label: str, block: DatasetOptions, dataset: Any) -> Images | None:
    """The first sample that can be read; None where none of the first few can."""
    # A dataset of the user's own may open files when first asked: that must happen in the worker, not here.
    dataset = copy.copy(dataset)
    for index in range(min(_TRIED, len(cast(Sized, dataset)))):
        try:
            sample = load_sample(dataset, SampleKey(index, seed=index))
        except Exception:  # told where all images are looked at, or when it is this one's turn
            continue
        lq, gt = sample.get("lq"), sample.get("gt")
        for name, image in (("lq", lq), ("gt", gt)):
            if image is not None and not (isinstance(image, Tensor) and image.dim() == 3):
                found = f"{image.dim()} dimensions" if isinstance(image, Tensor) else type(image).__name__
                raise OptionsError(
                    f"{label} ({block.type}): '{name}' of a sample must be a tensor (C, H, W), got {found}; mend the"
                    " dataset"
                )
        if lq is None or (gt is None and block.phase == "train"):
            missing = "lq" if lq is None else "gt"
            raise OptionsError(
                f"{label} ({block.type}): a sample has no '{missing}'; mend the dataset, or take another"
            )
        return Images(label, block, in_unit_range(lq), None if gt is None else in_unit_range(gt), dataset)
    return None


def _check_pair(images: Images, scale: int) -> None:
    """HR must be `scale` times LR; PairedImageDataset sees to it itself."""
    if images.gt is None:
        return
    (height, width), hr = images.lq.shape[-2:], tuple(images.gt.shape[-2:])
    if hr != (height * scale, width * scale):
        raise OptionsError(
            f"{images.label} ({images.block.type}) gives HR images of {hr[0]}x{hr[1]} pixels for LR images of"
            f" {height}x{width}; scale {scale} needs {height * scale}x{width * scale}: mend scale, or the dataset"
        )


def _lr_sizes(dataset: Any) -> list[tuple[int, int]]:
    """Heights and widths of a set's LR images that differ by more than multiples of 64, as their headers have them."""
    stored = stored_images(dataset)
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    if stored is None:
        return []
    for name in stored.files["lq"]:
        with suppress(HeaderError, DataError, OSError):  # told by the check of images
            with stored.roots["lq"].opened(name) as source:
                height, width = read_header(source).size
            sizes.setdefault((height % 64, width % 64), (height, width))
    return list(sizes.values())[:_SIZES]


def _teachers(run: TrainingRun, device: torch.device) -> Iterator[tuple[Trial, Mapping[str, Any] | None]]:
    precision = Precision(device.type, run.precision.kept()["amp_teacher"])
    if run.teacher is not None:
        yield Trial("network_t", run.teacher.network, device, precision), run.options.network_t
    for name, term in run.terms.items():
        if isinstance(term, SeveralTeachers):
            for number, teacher in enumerate(term.teachers):
                label = f"train.distill.{name}.teachers[{number}].network"
                yield Trial(label, cast(Any, teacher).network, device, precision), None


def _checked(trial: Trial, network_block: Mapping[str, Any] | None, images: Images, shape: Shape, scale: int) -> Shape:
    """What a network makes of an image of `shape`, which must be `scale` times as large and have HR's channels.

    Raises:
        OptionsError: it is not.
    """
    outcome = trial.outcome(shape)
    if outcome.made is None:
        raise _refusal(trial, network_block, images, outcome) from outcome.error
    channels, height, width = outcome.made
    _, given_height, given_width = outcome.given
    if (height, width) != (given_height * scale, given_width * scale):
        remedy = f"take a network for scale {scale}"
        if (height, width) == (given_height * (factor := height // given_height), given_width * factor) and factor:
            remedy += f", or set scale to {factor}"
        if (network_block or {}).get("type") == "SwinIR":
            remedy = f"give {trial.label} an upsampler ('pixelshuffle', 'pixelshuffledirect'), or set scale to 1"
        raise OptionsError(
            f"{trial.name} makes {height}x{width} pixels of {given_height}x{given_width}, scale {scale} needs"
            f" {given_height * scale}x{given_width * scale}: {remedy}"
        )
    takes = trial.first_channels
    if images.gt is None and channels != shape[0] and takes not in (None, shape[0]):  # it has spread one channel to all
        raise _other_channels(trial, network_block, images, takes)
    if images.gt is not None and channels != images.gt.shape[0]:
        if takes is not None and takes != shape[0]:
            raise _other_channels(trial, network_block, images, takes)
        raise OptionsError(
            f"{trial.name} gives {channels} channels, the HR images of {images.label} have {images.gt.shape[0]}: set"
            f" {_keys(trial.label, network_block, _OUT_KEYS)} to {images.gt.shape[0]}"
        )
    return outcome.made


def _refusal(trial: Trial, network_block: Mapping[str, Any] | None, images: Images, outcome: Outcome) -> OptionsError:
    if outcome.takes is not None:
        return _other_channels(trial, network_block, images, outcome.takes)
    channels, height, width = outcome.given
    what = f"{trial.name} fails on {channels} channels of {height}x{width} pixels, as {images.label} has them"
    if isinstance(outcome.error, UserError):
        return OptionsError(f"{what}: {outcome.error}")
    size = f"{images.label}.gt_size" if images.block.phase == "train" else "val.tile"
    return OptionsError(f"{what}: {outcome.reason}; mend the network, or give sizes that it takes ({size})")


def _other_channels(trial: Trial, network_block: Mapping[str, Any] | None, images: Images, takes: int) -> OptionsError:
    given, known = images.shape[0], images.block.type in ("PairedImageDataset", "SingleImageDataset")
    remedies = [f"set {_keys(trial.label, network_block, _IN_KEYS)} to {given}"]
    if trial.label.startswith("network_t") or "teachers" in trial.label:
        remedies = [f"take a teacher for {_counted(given)}"]
    elif known and takes == 1:
        remedies.append(f"set {images.label}.color to gray (values as stored) or y (luma)")
    elif known and takes == 3 and images.block.arguments.get("color") is not None:
        remedies.append(f"remove {images.label}.color")
    else:
        remedies.append(f"let {images.label} give {takes}")
    return OptionsError(
        f"{trial.name} takes {_counted(takes)}, {images.label} gives {given}: {', or '.join(reversed(remedies))}"
    )


def _keys(label: str, network_block: Mapping[str, Any] | None, names: Sequence[str]) -> str:
    """The options of a network's channels, as far as they are known."""
    if network_block is None or network_block.get("type") == "auto":
        return f"the channels of {label}, by another file,"
    both = ("in_chans", "img_channel")  # of input and output
    found = [name for name in network_block if name in names] or [names[0]]
    others = [name for name in network_block if name in (*_IN_KEYS, *_OUT_KEYS) and name not in found]
    others += ["the length of rgb_mean"] if "rgb_mean" in network_block else []
    return f"{label}.{found[0]}" + (f" (and {', '.join(others)})" if others and found[0] not in both else "")


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"


def _check_values(trial: Trial, network_block: Mapping[str, Any] | None, images: Images) -> None:
    outcome = trial.values(images.lq)
    if outcome.made is None:
        raise _refusal(trial, network_block, images, outcome) from outcome.error
    if outcome.reason:
        raise NonFiniteError(f"{trial.name} {outcome.reason} of {images.label}'s images; its weights are damaged")


def _check_discriminator(run: TrainingRun, adversary: Adversary, outputs: Sequence[Shape]) -> None:
    options, device = run.options, run.rank_info.device
    trial = Trial("network_d", adversary.discriminator, device, Precision(device.type, run.precision.kept()["amp"]))
    for shape in outputs:
        outcome = trial.outcome(shape, any_output=True)
        if outcome.made is not None:
            continue
        channels, height, width = outcome.given
        if outcome.takes is not None:
            key = _keys("network_d", options.network_d, _IN_KEYS)
            raise OptionsError(
                f"{trial.name} takes {_counted(outcome.takes)}, network_g gives {channels}: set {key} to {channels}"
            )
        if isinstance(outcome.error, UserError):
            raise OptionsError(f"network_d: {outcome.error}")
        raise OptionsError(
            f"{trial.name} fails on {channels} channels of {height}x{width} pixels, as network_g gives them:"
            f" {outcome.reason}; change datasets.train.gt_size, or network_d"
        )

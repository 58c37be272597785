"""What is checked before a run begins: all its images, and that networks, losses and images fit each other.

The fit is tried on one small image per set. What does not fit is refused in one line that names the option to change.
Nothing of the run is changed by it: networks are copied (`inference/trials.py`), and samples are read as evaluation
reads them.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from basicsr.config.schema import DatasetOptions, Options
from basicsr.config.without_hr import lacks_hr
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.batch import in_unit_range
from basicsr.data.mixing import sets_of
from basicsr.data.storage import stored_images
from basicsr.distill.base import LossTerm
from basicsr.engine.inputs import check_cache_content, check_datasets
from basicsr.engine.plausibility import doubt
from basicsr.engine.process.command import StopRequest
from basicsr.files.image_headers import HeaderError
from basicsr.inference.trials import Outcome, Shape, Trial
from basicsr.metrics import arguments_of, traits_of
from basicsr.metrics.evaluator import image_names
from basicsr.utils.dist_util import on_master, raise_together
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError, UserError
from basicsr.utils.precision import Precision

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

_TRIED = 8  # samples, until one can be read; bad images are reported by the check of images
_ODD = (67, 61)  # sides of which no network's windows or halvings are a divisor
_SMALL = 48
_SIZES = 64  # at most so many different ones of a set are tried
_IN_KEYS = ("num_in_ch", "in_chans", "img_channel", "inp_channels", "in_channels", "in_nc", "n_colors")
_OUT_KEYS = ("num_out_ch", "out_channels", "out_nc")


@dataclass(frozen=True)
class SampleImages:
    """One sample of a dataset: LR (C, h, w) and HR (C, sh, sw) or None; `label` is the dataset's option."""

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


def check_all_images(run: TrainingRun, stop: StopRequest) -> list[str]:
    """Checks all images as `check_images` says, and the teacher's cache; returns remarks. All ranks must call.

    Raises DataError where images cannot be used, more of them than may be skipped, or the cache is of other images;
    Preempted at once when a signal comes.
    """
    blocks = run.options.datasets_of("train")
    entries = [(run.training_sets[key], block) for key, block in blocks.items()]
    entries += [(run.validation[other.name], other) for other in run.options.datasets_of("val").values()]
    left_out, remarks = check_datasets(entries, run.rank_info, stop.at_once)
    for start, block, bad in zip(sets_of(run.loader.dataset), blocks.values(), left_out, strict=False):
        for image in bad:
            run.skipped.setdefault(start + image.index, []).append(str(image))
            remarks.append(f"{block.name}: left out: {image.path}: {image.reason}")
    run.loader.leave_out((index, note) for index, notes in run.skipped.items() for note in notes)

    def compare() -> None:
        with stop.at_once():
            for key, folder in run.options.teacher_caches.items():
                check_cache_content(folder, run.training_sets[key])

    on_master(compare)
    return remarks


def check_fit(run: TrainingRun) -> list[str]:
    """Tries student, teachers, discriminator and losses on the training images, the student on all validation sets.

    All ranks must call. Under `--debug` the traceback of a network's own error is printed. Returns remarks for the log;
    raises OptionsError where something does not fit, NonFiniteError where a network puts out NaN or infinity, DataError
    where two images of a validation set would have one name in the results.
    """
    options, device = run.options, run.rank_info.device
    remarks: list[str] = []
    failure: Exception | None = None
    try:
        for dataset in run.validation.values():
            image_names(dataset)
        student = Trial("network_g", run.network, device, Precision(device.type, run.precision.amp))
        for key, block in options.datasets_of("train").items():
            images = _first_sample(f"datasets.{key}", block, run.training_sets[key])
            if images is not None:
                _check_training(run, student, images)
        samples = list(evaluation_images(options, run.validation))
        for found in samples:
            remarks += check_evaluation(student, options.network_g, found, options)
        file = options.path.pretrain_network_t
        if run.teacher is not None and file is not None:
            samples += [images] if images is not None else []
            remarks += check_plausible("network_t", run.teacher.network, file, samples)
    except Exception as error:
        failure = error
        if options.name.startswith("debug") and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    raise_together(failure)
    return remarks


def _check_training(run: TrainingRun, student: Trial, images: SampleImages) -> None:
    options, device = run.options, run.rank_info.device
    sides = [side // options.scale for side in images.block.gt_sizes or ()]
    shapes: list[Shape] = [(images.shape[0], side, side) for side in sides] or [images.shape]
    outputs = _Fit(student, options.network_g, images).outputs(shapes)
    teachers: list[tuple[str, nn.Module, Mapping[str, Any] | None]] = []
    if run.teacher is not None:
        teachers.append(("network_t", run.teacher.network, options.network_t))
    for name, term in run.terms.items():
        for key, network in cast(LossTerm, term).further_networks().items():
            teachers.append((f"train.distill.{name}.{key}", network, None))
    for label, network, block in teachers:
        teacher = Trial(label, network, device, Precision(device.type, run.precision.amp_teacher))
        channels = _Fit(teacher, block, images).outputs(shapes)[0][0]
        if channels != outputs[0][0]:
            raise OptionsError(
                f"{teacher.name} gives {_counted(channels)}, {student.name} {outputs[0][0]}: teacher and student must"
                " give images alike"
            )
    if run.adversary is not None:
        precision = Precision(device.type, run.precision.amp)
        discriminator = Trial("network_d", run.adversary.discriminator, device, precision)
        for shape in outputs:
            _check_discriminator(discriminator, options.network_d, shape)
    smallest = min(outputs, key=lambda shape: shape[1] * shape[2])
    for term in run.terms.values():
        cast(LossTerm, term).check_output(smallest)


def _check_discriminator(trial: Trial, block: Mapping[str, Any] | None, shape: Shape) -> None:
    outcome = trial.outcome(shape, any_output=True)
    if outcome.made is not None:
        return
    channels, height, width = outcome.given
    if outcome.takes is not None:
        key = _channel_keys("network_d", block, _IN_KEYS)
        raise OptionsError(
            f"{trial.name} takes {_counted(outcome.takes)}, network_g gives {channels}: set {key} to {channels}"
        )
    if isinstance(outcome.error, UserError):
        raise OptionsError(f"network_d: {outcome.error}")
    raise OptionsError(
        f"{trial.name} fails on {channels} channels of {height}x{width} pixels, as network_g gives them:"
        f" {outcome.reason}; change datasets.train.gt_size, or network_d"
    )


def check_evaluation(
    trial: Trial, network_block: Mapping[str, Any] | None, images: SampleImages, options: Options
) -> list[str]:
    """Tries a network on a validation or test set, raising as `check_fit`.

    Metrics of luma or colours are refused for bands. Returns remarks where a metric's `test_y_channel` means nothing,
    or metrics need HR images that are not there.
    """
    fit = _Fit(trial, network_block, images)
    channels, height, width = images.shape
    largest = options.val.tile or max(height, width)
    tried = fit.output((channels, min(height, largest), min(width, largest)))
    if options.val.tile is None and trial.outcome((channels, *_ODD)).made is None:
        for size in _lr_sizes(images.dataset):
            fit.output((channels, *size))
    fit.check_values([tried])
    which, blocks = f"{images.label} ({images.block.name})", options.val.metrics
    idle = [name for name, block in blocks.items() if images.gt is None and traits_of(block).needs_reference]
    remarks = [f"{which} has no HR images: no figures of {', '.join(idle)}"] if idle else []
    if channels not in (1, 3):
        remarks.append(f"{which} has {channels} channels; pictures show the first{' three' if channels > 2 else ''}")
    luma = [name for name, block in blocks.items() if arguments_of(block).get("test_y_channel")]
    of_colours = [name for name, block in blocks.items() if traits_of(block).only_colours]
    if tried.made is not None and tried.made[0] not in (1, 3) and (luma or of_colours):
        whole = f"{which} has {tried.made[0]} channels"
        if luma:
            raise OptionsError(f"{whole}, of which there is no luma: remove test_y_channel of {', '.join(luma)}")
        raise OptionsError(f"{whole}: {', '.join(of_colours)} measures gray and RGB only; remove it")
    if tried.made is not None and tried.made[0] == 1 and luma:
        remarks.append(f"{which} has one channel: test_y_channel of {', '.join(luma)} has no effect")
    return remarks


def check_plausible(
    label: str, network: nn.Module, file: str | os.PathLike[str], samples: Sequence[SampleImages]
) -> list[str]:
    """A remark where a network makes so little of the samples that its input range or colours may be wrong."""
    usable = [
        sample
        for sample in samples
        if sample.gt is not None and not (sample.block.arguments.get("mean") or sample.block.arguments.get("std"))
    ]
    pairs = [(sample.lq, sample.gt) for sample in usable if sample.gt is not None]
    source = ", ".join(dict.fromkeys(sample.block.name for sample in usable))
    remark = doubt(label, network, file, pairs, source)
    return [remark] if remark is not None else []


def check_teacher(options: Options, network: nn.Module, device: torch.device) -> None:
    """Raises as `check_fit` unless a teacher makes RGB images of RGB images, at the options' scale."""
    key, block = next(iter(options.datasets_of("train").items()))
    lq, gt = (torch.full((3, side, side), 0.5) for side in (_SMALL, _SMALL * options.scale))
    images = SampleImages(f"datasets.{key}", block, lq, gt, None)
    _Fit(Trial("network_t", network, device), options.network_t, images).outputs([images.shape])


def evaluation_images(options: Options, datasets: Mapping[str, Any]) -> Iterator[SampleImages]:
    """One image of each validation and test set, as far as they can be read; `datasets` by their names."""
    for key, block in options.datasets_of("val", "test").items():
        images = _first_sample(f"datasets.{key}", block, datasets[block.name]) if block.name in datasets else None
        if images is not None:
            yield images


def _first_sample(label: str, block: DatasetOptions, dataset: Any) -> SampleImages | None:
    """The first sample that can be read, once its images are found to be a pair; None where none of a few can."""
    # A dataset of the user's own may open files when first asked: that must happen in the worker, not here.
    dataset = copy.copy(dataset)
    for index in range(min(_TRIED, len(cast(Sized, dataset)))):
        try:
            sample = load_sample(dataset, SampleKey(index, seed=index))
        except Exception:  # reported by the check of images, or when it is this one's turn
            continue
        lq, gt = sample.get("lq"), sample.get("gt")
        for name, image in (("lq", lq), ("gt", gt)):
            if image is not None and not (isinstance(image, Tensor) and image.dim() == 3):
                found = f"{image.dim()} dimensions" if isinstance(image, Tensor) else type(image).__name__
                raise OptionsError(
                    f"{label} ({block.type}): '{name}' of a sample must be a tensor (C, H, W), got {found}; mend the"
                    " dataset"
                )
        if lq is None or (gt is None and block.phase == "train" and not lacks_hr(block)):
            missing = "lq" if lq is None else "gt"
            raise OptionsError(
                f"{label} ({block.type}): a sample has no '{missing}'; mend the dataset, or take another"
            )
        (height, width), scale = lq.shape[-2:], block.scale
        if gt is not None and gt.shape[-2:] != (height * scale, width * scale):
            raise OptionsError(
                f"{label} ({block.type}) gives HR images of {gt.shape[-2]}x{gt.shape[-1]} pixels for LR images of"
                f" {height}x{width}; scale {scale} needs {height * scale}x{width * scale}: mend scale, or the dataset"
            )
        return SampleImages(label, block, in_unit_range(lq), None if gt is None else in_unit_range(gt), dataset)
    return None


def _lr_sizes(dataset: Any) -> list[tuple[int, int]]:
    """Heights and widths of a set's LR images that differ by more than multiples of 64, from their headers."""
    if (stored := stored_images(dataset)) is None:
        return []
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    role, factor = ("lq", 1) if "lq" in stored.files else ("gt", stored.scale)  # LR is made of HR
    for name in stored.files[role]:
        with suppress(HeaderError, DataError, OSError):  # reported by the check of images
            with stored.roots[role].opened(name) as source:
                height, width = (side // factor for side in stored.roots[role].header(source).size)
            sizes.setdefault((height % 64, width % 64), (height, width))
    return list(sizes.values())[:_SIZES]


@dataclass(frozen=True)
class _Fit:
    """Tries a network, built from the options `block`, on images; a network that fails is an OptionsError."""

    trial: Trial
    block: Mapping[str, Any] | None
    images: SampleImages

    def outputs(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the outputs for patches of `shapes`, once values are checked too."""
        tried = [self.output(shape) for shape in shapes]
        self.check_values(tried)
        made = [outcome.made[0] for outcome in tried if outcome.made is not None]
        scale = self.images.block.scale
        return [(channels, shape[1] * scale, shape[2] * scale) for channels, shape in zip(made, shapes, strict=True)]

    def output(self, shape: Shape) -> Outcome:
        """The outcome for an image of `shape`: the output must be `scale` times as large and have HR's channels."""
        trial, images, scale = self.trial, self.images, self.images.block.scale
        outcome = trial.outcome(shape, image=images.lq)
        if outcome.made is None:
            raise self._refusal(outcome) from outcome.error
        channels, height, width = outcome.made
        _, given_height, given_width = outcome.given
        if (height, width) != (given_height * scale, given_width * scale):
            remedy = f"take a network for scale {scale}"
            if (height, width) == (given_height * (factor := height // given_height), given_width * factor) and factor:
                remedy += f", or set scale to {factor}"
            if (self.block or {}).get("type") == "SwinIR":
                remedy = f"give {trial.label} an upsampler ('pixelshuffle', 'pixelshuffledirect'), or set scale to 1"
            raise OptionsError(
                f"{trial.name} makes {height}x{width} pixels of {given_height}x{given_width}, scale {scale} needs"
                f" {given_height * scale}x{given_width * scale}: {remedy}"
            )
        wanted = channels if images.gt is None else images.gt.shape[0]
        takes = trial.first_channels
        if takes not in (None, shape[0]) and channels != (shape[0] if images.gt is None else wanted):
            raise self._other_channels(takes)  # without HR images: it has spread one channel to all
        if channels != wanted:
            raise OptionsError(
                f"{trial.name} gives {channels} channels, the HR images of {images.label} have {wanted}: set"
                f" {_channel_keys(trial.label, self.block, _OUT_KEYS)} to {wanted}"
            )
        return outcome

    def check_values(self, tried: Sequence[Outcome]) -> None:
        """Runs the network on a corner of the image unless it ran on it; raises NonFiniteError for NaN or infinity."""
        outcome = next((outcome for outcome in tried if outcome.of_image), None) or self.trial.values(self.images.lq)
        if outcome.made is None:
            raise self._refusal(outcome) from outcome.error
        if outcome.reason:
            raise NonFiniteError(
                f"{self.trial.name} {outcome.reason} of {self.images.label}'s images; its weights are damaged"
            )

    def _refusal(self, outcome: Outcome) -> OptionsError:
        if outcome.takes is not None:
            return self._other_channels(outcome.takes)
        channels, height, width = outcome.given
        images = self.images
        what = f"{self.trial.name} fails on {channels} channels of {height}x{width} pixels, as {images.label} has them"
        if isinstance(outcome.error, UserError):
            return OptionsError(f"{what}: {outcome.error}")
        size = f"{images.label}.gt_size" if images.block.phase == "train" else "val.tile"
        return OptionsError(f"{what}: {outcome.reason}; mend the network, or give sizes that it takes ({size})")

    def _other_channels(self, takes: int) -> OptionsError:
        trial, images = self.trial, self.images
        given, known = images.shape[0], images.block.type in ("PairedImageDataset", "SingleImageDataset")
        remedies = [f"set {_channel_keys(trial.label, self.block, _IN_KEYS)} to {given}"]
        if trial.label.startswith("network_t") or "teachers" in trial.label:
            remedies = [f"take a teacher for {_counted(given)}"]
        elif known and takes == 1 and given == 3:
            remedies.append(f"set {images.label}.color to gray (values as stored) or y (luma)")
        elif known and takes == 3 and images.block.arguments.get("color") is not None:
            remedies.append(f"remove {images.label}.color")
        else:
            remedies.append(f"let {images.label} give {takes}")
        return OptionsError(
            f"{trial.name} takes {_counted(takes)}, {images.label} gives {given}: {', or '.join(reversed(remedies))}"
        )


def _channel_keys(label: str, block: Mapping[str, Any] | None, names: Sequence[str]) -> str:
    """The options of a network's channels, as far as they are known."""
    if block is None or block.get("type") == "auto":
        return f"the channels of {label}, by another file,"
    found = [name for name in block if name in names] or [names[0]]
    others = [name for name in block if name in (*_IN_KEYS, *_OUT_KEYS) and name not in found]
    others += ["the length of rgb_mean"] if "rgb_mean" in block else []
    of_both = found[0] in ("in_chans", "img_channel")  # of input and output
    return f"{label}.{found[0]}" + (f" (and {', '.join(others)})" if others and not of_both else "")


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"

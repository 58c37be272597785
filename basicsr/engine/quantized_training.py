"""Training with fake quantisation (`train: quantize`): a student's quantisers, and their ranges from its own images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from basicsr.config.quantization import QuantizationSettings
from basicsr.config.schema import Options
from basicsr.data.calibration_images import calibration_images
from basicsr.data.checks.checking import progress
from basicsr.engine.process.command import StopRequest
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.layers import quantizable_layers, quantized_layers
from basicsr.quantization.network import quantization_of, quantize_network
from basicsr.quantization.records import is_range, load_ranges, read_record
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import OptionsError
from basicsr.utils.pass_times import input_channels
from basicsr.utils.registry import thaw
from basicsr.weights.spandrel_networks import SpandrelNetwork


def check_start(options: Options, network: nn.Module, resumed: bool) -> None:
    """Raises OptionsError where what a run starts from does not fit whether it is quantised."""
    path, settings = options.path, options.train.quantize
    if settings is None and quantization_of(network) is not None:
        raise OptionsError(
            f"path.pretrain_network_g {path.pretrain_network_g} is a quantised network; give its float weights, and"
            " train: quantize to train it quantised"
        )
    if settings is not None and isinstance(network, SpandrelNetwork):
        raise OptionsError(
            f"train.quantize: network_g is {network.architecture} of spandrel's; checkpoints of quantised networks"
            " cannot describe these: train a network of this framework"
        )
    if settings is not None and not (resumed or path.pretrain_network_g or path.allow_random_teacher):
        raise OptionsError(
            "path.pretrain_network_g is required by train.quantize: the file with the float weights, which are trained"
            " on with fake quantisation"
        )


def add_quantizers(options: Options, network: nn.Module, saved: Any, calibrated: bool) -> list[str]:
    """Gives the student its fake quantisers; they act at once where a checkpoint has their ranges (`calibrated`).

    Which layers have them follows from the file `saved`, net_g's content in the checkpoint, where the settings are
    those; else from the traced graph. Returns a remark for the log; raises OptionsError where the network cannot be
    quantised, or where the checkpoint's ranges were found with other settings.
    """
    settings = options.train.quantize
    assert settings is not None
    everything = len(dict(quantizable_layers(network)))
    record = saved.get("quantization") if isinstance(saved, Mapping) else None
    recorded = None
    with suppress(ValueError):  # what does not fit is said when the weights are restored
        recorded = read_record(network, record) if isinstance(record, Mapping) else None
    if calibrated and recorded is not None:
        _check_same_ranges(recorded.settings, settings)
    plans = recorded.plans if recorded is not None and recorded.settings == settings else None
    quantization = quantize_network(network, settings, channels=input_channels(network), plans=plans)
    _switch(network, calibrated)
    return [f"{quantization}, of {everything}"]


def _check_same_ranges(saved: QuantizationSettings, settings: QuantizationSettings) -> None:
    """Raises OptionsError where a checkpoint's ranges were found with other settings; weights of any bits need none."""
    for key in type(settings).model_fields:
        before, now = (thaw(getattr(one, key)) for one in (saved, settings))
        if key != "weight_bits" and before != now:
            raise OptionsError(
                f"train.quantize.{key} is {now}, and the checkpoint's ranges were found with {before}, which"
                " --allow_config_change leaves as they are: put it back, or start a run of another name"
            )


def calibrate_student(options: Options, networks: Sequence[nn.Module], stop: StopRequest) -> list[str]:
    """Sets the ranges of a student and of its moving average, on rank 0, and hands them to all ranks; all must call.

    Returns a remark for the log. Raises DataError where there are no images, NonFiniteError where values in the float
    network are not finite, Preempted at once when a signal comes.
    """
    settings = options.train.quantize
    assert settings is not None

    def measured() -> tuple[int, dict[str, torch.Tensor]]:
        with stop.at_once():
            images = calibration_images(list(options.datasets_of("train").values()), settings.images)

            def shown(items: Iterable[Any]) -> Iterable[Any]:
                return progress("Calibrating", sys.stderr.isatty(), iter(items), len(images))

            calibrate(networks[0], images, report=shown)
        return len(images), {key: value.cpu() for key, value in networks[0].state_dict().items() if is_range(key)}

    count, ranges = on_master(measured)
    for network in networks:
        load_ranges(network, ranges)
        _switch(network, True)
    return [f"calibrated on {count} LR images of the training sets (ranges: {settings.ranges})"]


def _switch(network: nn.Module, on: bool) -> None:
    for layer in quantized_layers(network).values():
        layer.quantizes = on

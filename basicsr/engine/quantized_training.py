"""Training with fake quantisation (`train: quantize`): a student's quantisers, and their ranges from its own images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from basicsr.config.schema import Options
from basicsr.data.calibration_images import calibration_images
from basicsr.data.checks.checking import progress
from basicsr.engine.process.command import StopRequest
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.network import quantization_of, quantize_network
from basicsr.quantization.records import is_range
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import OptionsError
from basicsr.utils.pass_times import input_channels


def check_start(options: Options, network: nn.Module, resumed: bool) -> None:
    """Raises OptionsError where what a run starts from does not fit whether it is quantised."""
    path, settings = options.path, options.train.quantize
    if settings is None and quantization_of(network) is not None:
        raise OptionsError(
            f"path.pretrain_network_g {path.pretrain_network_g} is a quantised network; give its float weights, and"
            " train: quantize to train it quantised"
        )
    if settings is not None and not (resumed or path.pretrain_network_g or path.allow_random_teacher):
        raise OptionsError(
            "path.pretrain_network_g is required by train.quantize: the file with the float weights, which are trained"
            " on with fake quantisation"
        )


def add_quantizers(options: Options, network: nn.Module, calibrated: bool) -> list[str]:
    """Gives the student its fake quantisers, which act at once where they get their ranges from a checkpoint.

    Returns a remark for the log; raises OptionsError where the network cannot be quantised.
    """
    settings = options.train.quantize
    assert settings is not None
    everything = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules())
    plans = quantize_network(network, settings, channels=input_channels(network)).plans
    _switch(network, calibrated)
    kinds = [plan.integers for plan in plans.values()]
    counts = ", ".join(f"{kinds.count(kind)} with {kind} activations" for kind in dict.fromkeys(kinds))
    return [f"quantised: {counts}, of {everything} layers; weights of {settings.weight_bits} bits"]


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
        return len(images), _ranges(networks[0])

    count, ranges = on_master(measured)
    for network in networks:
        network.load_state_dict(ranges, strict=False)
        _switch(network, True)
    return [f"calibrated on {count} LR images of the training sets (ranges: {settings.ranges})"]


def _ranges(network: nn.Module) -> dict[str, torch.Tensor]:
    """The quantisers' part of a state dict, on the CPU."""
    state: Mapping[str, torch.Tensor] = network.state_dict()
    return {name: value.cpu() for name, value in state.items() if is_range(name)}


def _switch(network: nn.Module, on: bool) -> None:
    for layer in quantized_layers(network).values():
        layer.quantizes = on

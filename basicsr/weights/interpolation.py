"""Interpolation of networks in their weights (Wang et al., "Deep Network Interpolation", CVPR 2019; ESRGAN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from basicsr.quantization.network import quantization_of
from basicsr.utils.errors import CheckpointError
from basicsr.weights.recognise import Pretrained
from basicsr.weights.spandrel_networks import NotRecognised, SpandrelNetwork

_SPANDRELS = "model."


def check_alike(networks: Mapping[str, Pretrained]) -> None:
    """Raises CheckpointError, in one line, where a network, by its file, differs from the first in more than values."""
    for path, network in networks.items():
        if quantization_of(network.network) is not None:
            raise CheckpointError(
                f"{path} is quantised: interpolate the float networks, then quantise the result (scripts/quantize.py)"
            )
    (path, first), *others = networks.items()
    for other_path, other in others:
        difference = _difference(first, other)
        if difference is not None:
            ours, theirs = difference
            raise CheckpointError(
                f"{path} is {ours}, {other_path} {theirs}: only networks that are equal but for the values of their"
                " weights can be interpolated, as a network and what was fine-tuned from it"
            )


def _difference(first: Pretrained, other: Pretrained) -> tuple[str, str] | None:
    """What one and the other network is that the other is not; None where they are alike."""
    for name in ("architecture", "scale"):
        values = getattr(first, name), getattr(other, name)
        if values[0] != values[1]:
            return tuple(value if name == "architecture" else f"x{value}" for value in values)  # type: ignore[return-value]
    blocks = [dict(network.block or {}) for network in (first, other)]
    for key in dict.fromkeys([*blocks[0], *blocks[1]]):
        given = [block.get(key) for block in blocks]
        if given[0] != given[1] and None not in given:  # what one of them leaves out is its class's default
            return tuple(f"of {key} {value}" for value in given)  # type: ignore[return-value]
    shapes = [{key: tuple(value.shape) for key, value in weights_of(network).items()} for network in (first, other)]
    for key in dict.fromkeys([*shapes[0], *shapes[1]]):
        sides = [f"with '{key}' {side[key]}" if key in side else f"without '{key}'" for side in shapes]
        if sides[0] != sides[1]:
            return sides[0], sides[1]
    return None


def weights_of(network: Pretrained) -> dict[str, Tensor]:
    """A network's state dict under the keys by which its files are recognised."""
    state = network.network.state_dict()
    if not isinstance(network.network, SpandrelNetwork):
        return state
    return {key.removeprefix(_SPANDRELS): value for key, value in state.items()}


def interpolated(networks: Mapping[str, Pretrained], shares: Sequence[float]) -> dict[str, Any]:
    """The content of a file of weights, sum of `shares` times the networks' weights, summed in float64.

    Weights that are equal in all networks stay as they are to the bit; whole numbers, such as counts of batches, are
    those of the network with the largest share. `params` are the weights, `network` the options that build it (neither
    of spandrel's networks, nor of those for several scales), `training` says what it is made of. Raises CheckpointError
    where the networks are not alike, or the result is not recognised.
    """
    check_alike(networks)
    states = [weights_of(network) for network in networks.values()]
    largest = states[max(range(len(shares)), key=lambda index: shares[index])]
    mixed: dict[str, Tensor] = {}
    for key, leading in largest.items():
        values = [state[key] for state in states]
        if not leading.is_floating_point() or all(torch.equal(value, leading) for value in values):
            mixed[key] = leading.clone()
            continue
        terms = [share * value.double() for share, value in zip(shares, values, strict=True) if share]
        mixed[key] = torch.stack(terms).sum(0).to(leading.dtype)
    first = next(iter(networks.values()))
    content: dict[str, Any] = {"params": mixed}
    if first.block is not None and not first.scales:  # else the keys say it, for all scales
        content["network"] = {**first.block, "scale": first.scale}
    if first.block is None:
        try:
            SpandrelNetwork(mixed)
        except NotRecognised as error:
            raise CheckpointError(f"the interpolated {first.architecture} would not be recognised: {error}") from error
    content["training"] = {
        "interpolated": [
            {"file": str(path), "share": share, "weights": network.weights, **_origin(network)}
            for (path, network), share in zip(networks.items(), shares, strict=True)
        ]
    }
    return content


def _origin(network: Pretrained) -> dict[str, Any]:
    """What the file's own record says of its training, in short."""
    training = network.metadata.get("training")
    known = training if isinstance(training, Mapping) else {}
    return {key: known[key] for key in ("name", "iteration") if isinstance(known.get(key), (str, int))}

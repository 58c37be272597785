"""Student and teacher as a distillation term sees them before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from basicsr.archs.staged import StagedNetwork
from basicsr.archs.taps import FeatureTaps
from basicsr.utils.errors import OptionsError

PROBE_SIZE = 16
"""Side of the image by which shapes of features are found."""


@dataclass(frozen=True)
class NetworkView:
    """A network, and where features can be had from it.

    Attributes:
        label: what the options call it, `network_g` or `network_t`.
        network: itself, on its device.
    """

    label: str
    network: nn.Module
    _shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)

    @property
    def staged(self) -> StagedNetwork:
        """The network as a stem, stages and a reconstruction.

        Raises:
            OptionsError: it is not built so.
        """
        if not isinstance(self.network, StagedNetwork):
            raise OptionsError(
                f"{self.label}, {type(self.network).__name__}, is not built of a stem, stages and a reconstruction;"
                " EDSR, RCAN, SwinIR and MSRResNet are"
            )
        return self.network

    def positions(self, count: int) -> tuple[str, ...]:
        """`count` stages, as module paths: evenly spaced over the body, the last at its end.

        Where the body has fewer stages than that, some come twice.

        Raises:
            OptionsError: the network is not built of stages.
        """
        names = self.staged.stage_names
        return tuple(names[number - 1] for number in boundaries(len(names), count))

    def channels(self, path: str) -> int:
        """Channels of the feature map that a module puts out.

        Raises:
            OptionsError: there is no such module, or it puts out no feature map.
        """
        return self.shapes([path])[0][0]

    def shapes(self, paths: Sequence[str]) -> list[tuple[int, int, int]]:
        """(C, H, W) of the feature maps of modules, for an image of `PROBE_SIZE`.

        Raises:
            OptionsError: a module is not there, is not run, or puts out no feature map.
        """
        wanted = [path for path in dict.fromkeys(paths) if path not in self._shapes]
        if wanted:
            self._shapes.update(self._measured(wanted))
        return [self._shapes[path] for path in paths]

    @torch.no_grad()
    def _measured(self, paths: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        parameter = next(self.network.parameters())
        training = [module for module in self.network.modules() if module.training]
        self.network.eval()  # so that no statistic moves and no random number is drawn
        try:
            with self._taps(paths) as features:
                image = torch.zeros(1, self._colours(), PROBE_SIZE, PROBE_SIZE, device=parameter.device)
                self.network(image.to(parameter.dtype))
        finally:
            for module in training:
                module.training = True
        if silent := [path for path in paths if path not in features]:
            raise OptionsError(f"{self.label}: the module '{silent[0]}' is not run in its forward; tap another")
        return {path: tuple(features[path].shape[1:]) for path in paths}  # type: ignore[misc]

    def _taps(self, paths: Sequence[str]) -> FeatureTaps:
        try:
            return FeatureTaps(self.network, paths)
        except OptionsError as error:
            raise OptionsError(f"{self.label}: {error}") from error

    def _colours(self) -> int:
        own = getattr(self.network, "in_channels", None)
        if isinstance(own, int):
            return own
        first = next((module for module in self.network.modules() if isinstance(module, nn.Conv2d)), None)
        return first.in_channels if first is not None else 3


@dataclass(frozen=True)
class NetworkPair:
    """The student, which will be trained, and its teacher, which will not."""

    student: NetworkView
    teacher: NetworkView


def boundaries(stages: int, count: int) -> list[int]:
    """Cuts a body of `stages` stages into `count` even parts: after how many stages each part ends, rounded up."""
    return [-(-stages * part // count) for part in range(1, count + 1)]

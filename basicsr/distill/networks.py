"""Student and teacher as a distillation term sees them before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from basicsr.archs.feature_hooks import FeatureTaps
from basicsr.archs.staged import StagedNetwork
from basicsr.utils.errors import OptionsError


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
                " EDSR, RCAN, SwinIR and MSRResNet are; a method that compares features takes modules of others by"
                " student_taps and teacher_taps"
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
        """(C, H, W) of the feature maps of modules, for the image of `probe_image`.

        Raises:
            OptionsError: a module is not there, is not run, or puts out no feature map.
        """
        wanted = [path for path in dict.fromkeys(paths) if path not in self._shapes]
        if wanted:
            self._taps(wanted)
        return [self._shapes[path] for path in paths]

    def resolution(self, path: str) -> float:
        """How many times as high as the input a module's feature map is, but for an extension to multiples of a window.

        Raises:
            OptionsError: a module is not there, is not run, or puts out no feature map.
        """
        height, image = self.shapes([path])[0][1], self._shapes[""][1]
        return float(height // image) if height >= image else 1 / (image // height)

    def taps(self, paths: Iterable[str]) -> FeatureTaps:
        """Taps on modules, which know how each output is laid out.

        Raises:
            OptionsError: a module is not there, is not run, or puts out no feature map.
        """
        return self._taps(sorted(set(paths)))

    def _taps(self, paths: Sequence[str]) -> FeatureTaps:
        try:
            taps = FeatureTaps(self.network, paths)
            if paths:
                self._shapes.update(taps.probe())
        except OptionsError as error:
            raise OptionsError(f"{self.label}: {error}") from error
        return taps


@dataclass(frozen=True)
class NetworkPair:
    """The student, which will be trained, and its teacher, which will not."""

    student: NetworkView
    teacher: NetworkView


def boundaries(stages: int, count: int) -> list[int]:
    """Cuts a body of `stages` stages into `count` even parts: after how many stages each part ends, rounded up."""
    return [-(-stages * part // count) for part in range(1, count + 1)]

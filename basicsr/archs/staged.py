"""What SR networks have in common inside: a stem, a body of stages, a reconstruction."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """A network whose `forward(x)` is `reconstruct(run_stages(stem(x)))`.

    Each stage of the body takes features (B, C, H, W) and returns features of that shape, so that features may leave
    and enter after any stage. The interface adds no weights.

    Attributes:
        stages_name: name of the module list or sequence that holds the stages.
        slices_are_networks: whether leading slices of the weights are a narrower network of the class.
    """

    stages_name: ClassVar[str] = "body"
    slices_are_networks: ClassVar[bool] = False

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Module paths of the stages, in order, such as `body.0`."""
        stages = self.get_submodule(self.stages_name)
        return tuple(f"{self.stages_name}.{name}" for name, _ in stages.named_children())

    @abstractmethod
    def stem(self, x: Tensor) -> tuple[Tensor, Any]:
        """From images (B, 3, H, W) in [0, 1] to the first features, and whatever the later parts need of the input."""

    def run_stages(self, features: Tensor, kept: Any, first: int = 0, last: int | None = None) -> Tensor:
        """Runs the stages from number `first` to before number `last`, by default all; `kept` is the stem's."""
        body = self.get_submodule(self.stages_name)
        if first == 0 and last is None:
            return body(features)  # as a whole, for hooks on the body
        for stage in list(body.children())[first:last]:
            features = stage(features)
        return features

    @abstractmethod
    def reconstruct(self, features: Tensor, kept: Any) -> Tensor:
        """From the last stage's features, and what the stem kept, to images (B, 3, sH, sW), not clipped."""

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        features, kept = self.stem(x)
        return self.reconstruct(self.run_stages(features, kept), kept)

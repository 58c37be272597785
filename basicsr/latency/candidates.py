"""What is measured: a file in its runtime, or a network in PyTorch; and how it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime, runtime_for, runtimes
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import thaw

PYTORCH = "pytorch"
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
_TRIED = 64  # pixels a side


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Attributes:
        label: what tells it from the others that are measured with it.
        source: an exported file, a checkpoint, or the options block of an untrained network.
        size: height and width of the image.
        threads: of the processor.
        runtime: its name; None: the installed one for the file's ending, PyTorch for networks.
        settings: the runtime's own, such as `{"precision": "bf16"}`.
        network: options block that is written beside the figure; of `source` where that is one.
        name: in the figure; the label where it is empty.
    """

    label: str
    source: Path | Mapping[str, Any]
    size: tuple[int, int]
    threads: int = 1
    runtime: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    name: str = ""

    @property
    def block(self) -> dict[str, Any] | None:
        """Options block of the network, where it is known."""
        block = self.network if isinstance(self.source, Path) else self.source
        return None if block is None else thaw(block)

    @property
    def is_file(self) -> bool:
        """Whether a runtime reads it, rather than a network being built."""
        return isinstance(self.source, Path) and not is_checkpoint(self.source)

    def find_runtime(self) -> Runtime:
        """Who runs it; OptionsError where nobody does, MachineError where that is not installed."""
        if self.is_file:
            assert isinstance(self.source, Path)
            found = runtime_for(self.source, self.runtime)
        else:
            if self.runtime not in (None, PYTORCH):
                raise OptionsError(f"{self.runtime} runs exported files, {self.label} is a network: export it first")
            found = runtimes()[PYTORCH]
        found.require()
        return found

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the candidate of, in another process."""
        source = str(self.source.absolute()) if isinstance(self.source, Path) else thaw(self.source)
        return {
            **{"label": self.label, "source": source, "size": list(self.size), "threads": self.threads},
            **{"runtime": self.runtime, "settings": thaw(self.settings)},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Candidate:
        """See `to_json`."""
        source = content["source"]
        height, width = content["size"]
        return cls(
            **{**content, "source": Path(source) if isinstance(source, str) else source, "size": (height, width)}
        )

    def load(self) -> LoadedFile:
        """Ready to run on its threads; raises UserError where that cannot be."""
        runtime = self.find_runtime()
        if self.is_file:
            assert isinstance(self.source, Path)
            if not self.source.is_file():
                raise DataError(f"there is no file {self.source}")
            return runtime.load(self.source, threads=self.threads, settings=self.settings)
        return _load_network(self.source, self.threads, self.settings)

    def digest(self) -> str | None:
        """SHA-256 of the file and of those that belong to it; None for an untrained network."""
        if not isinstance(self.source, Path):
            return None
        parts = [self.source]
        if self.is_file:
            parts += self.find_runtime().companions(self.source)
        total = hashlib.sha256()
        try:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(1 << 20):
                        total.update(block)
        except OSError as error:
            raise DataError(f"cannot read {part}: {error.strerror}") from error
        return total.hexdigest()


def is_checkpoint(path: Path) -> bool:
    """Whether a file of this name holds weights, from which a network is built."""
    return path.name.lower().endswith(CHECKPOINTS)


def _load_network(source: Path | Mapping[str, Any], threads: int, settings: Mapping[str, Any]) -> LoadedFile:
    """A network by PyTorch: merged where it trains in branches, with the weights of its file or random ones."""
    from basicsr.runtimes.pytorch_runtime import check_settings, run_network

    checked = check_settings(settings)
    import torch

    from basicsr.archs import build_network
    from basicsr.utils.reparameterization import merge

    torch.manual_seed(0)
    if isinstance(source, Path):
        from basicsr.weights.recognise import load_pretrained

        pretrained = load_pretrained(source)
        network, scale, channels = pretrained.network, pretrained.scale, pretrained.in_channels
    else:
        network = build_network(source).eval()
        scale, channels = _scale_and_channels(network)
    merge(network)
    facts = FileFacts(scale=scale, channels=channels, batches=True)
    return run_network(network, facts, threads=threads, settings=checked)


def _scale_and_channels(network: Any) -> tuple[int, int]:
    import torch

    from basicsr.utils.complexity import on_meta
    from basicsr.utils.pass_times import input_channels

    channels = input_channels(network)
    with torch.no_grad():
        made = on_meta(network)(torch.empty(1, channels, _TRIED, _TRIED, device="meta"))
    return made.shape[-1] // _TRIED, channels

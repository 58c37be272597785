"""What quantisation costs: a figure of the float network, of the quantised one, and of each layer quantised alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.network import in_float

Measure = Callable[[nn.Module], float]
"""A figure of a network where higher is better, such as its PSNR on a validation set in dB."""


@dataclass(frozen=True)
class Sensitivity:
    """Figures of one network.

    Attributes:
        unquantized: of the float network.
        quantized: with all layers quantised.
        alone: with one layer quantised and all others in float, by the layer's name, in the network's order.
    """

    unquantized: float
    quantized: float
    alone: dict[str, float]

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` layers that cost most alone, and what: how much lower the figure is, worst first."""
        lost = [(name, self.unquantized - figure) for name, figure in self.alone.items()]
        return sorted(lost, key=lambda entry: -entry[1])[:count]


def sensitivity(
    network: nn.Module,
    measure: Measure,
    *,
    layers: Sequence[str] | None = None,
    report: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Sensitivity:
    """Measures a calibrated network, which is left as it is.

    Args:
        network: with fake quantisers.
        measure: is called once for each layer, and twice more.
        layers: which are measured alone; None for all.
        report: goes round the layers' names, as tqdm does.
    """
    quantized = measure(network)
    alone = {}
    with in_float(network):
        unquantized = measure(network)
        every = quantized_layers(network)
        for name in report(list(every) if layers is None else layers):
            every[name].quantizes = True
            try:
                alone[name] = measure(network)
            finally:
                every[name].quantizes = False
    return Sensitivity(unquantized, quantized, alone)

"""EDSR for spandrel, which has none itself: our class, registered among its architectures."""

from __future__ import annotations

from typing import Any

from basicsr.archs import build_network
from basicsr.archs.recognition import UnsupportedWeights
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise


def register(registry: Any = None) -> None:
    """Makes spandrel's `MAIN_REGISTRY`, or another, load EDSR in EDSR-PyTorch's layout and ours; once is enough."""
    import_torchvision()
    from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, StateDict

    class EDSRArch(Architecture[Any]):
        def __init__(self) -> None:
            super().__init__(id="EDSR", name="EDSR", detect=_is_edsr)

        def load(self, state_dict: StateDict) -> ImageModelDescriptor[Any]:
            found = recognise(state_dict)
            assert found is not None, "spandrel loads what was detected"
            network = build_network(found.options)
            network.load_state_dict(found.state)
            return ImageModelDescriptor(
                network,
                found.state,
                architecture=self,
                purpose="Restoration" if found.scale == 1 else "SR",
                tags=[f"{found.options['num_feat']}nf", f"{found.options['num_block']}nb"],
                supports_half=False,  # the output image would be rounded to 11 bits
                supports_bfloat16=False,
                scale=found.scale,
                input_channels=found.options["num_in_ch"],
                output_channels=found.options["num_out_ch"],
            )

    registry = MAIN_REGISTRY if registry is None else registry
    if "EDSR" not in registry:
        registry.add(ArchSupport.from_architecture(EDSRArch()))


def _is_edsr(state: Any) -> bool:
    try:
        found = recognise(state)
    except UnsupportedWeights:
        return False
    return found is not None and found.architecture == "EDSR"

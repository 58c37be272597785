"""safetensors: the weights in this framework's layout or in spandrel's."""

from __future__ import annotations

from pathlib import Path

import torch

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.spandrel_layout import for_spandrel, spandrel_runner
from basicsr.export.tracing import smallest_side
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.weights.recognise import load_pretrained


@EXPORT_REGISTRY.register()
class Safetensors(ExportFormat):
    """Weights, with the metadata in the header; they are loaded again and compared, spandrel's layout by it too."""

    name, ending, order = "safetensors", ".safetensors", 1

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        from safetensors.torch import save

        network, architecture = job.student.pretrained.network, job.student.pretrained.architecture
        state, changed = network.state_dict(), None
        if job.layout == "spandrel":
            converted = for_spandrel(network, architecture)
            state, changed = converted.state, converted.changed
            job.remarks += [converted.remark] if converted.remark else []
        if job.precision == "fp16":
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        separate = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        path.write_bytes(save(separate, {"format": "pt", **job.metadata(changed)}))
        exact = job.precision == "float32" and job.layout == "ours"
        checks = job.compare("safetensors", load_pretrained(path).network, tolerance=0.0 if exact else None)
        if job.layout == "spandrel":
            # spandrel's SwinIR pads by a single reflection: a side must be longer than what it lacks to a window.
            smallest = max(16, smallest_side(network) // 2 + 1)
            checks += job.compare("safetensors (spandrel)", spandrel_runner(path, architecture), smallest=smallest)
        return checks

"""torch.export: a program that PyTorch runs without this framework."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from basicsr.export.base import ExportFormat, ExportJob
from basicsr.export.checks import Check
from basicsr.export.tracing import quiet, smallest_side
from basicsr.utils.registry import EXPORT_REGISTRY


@EXPORT_REGISTRY.register()
class TorchExport(ExportFormat):
    """A program of torch.export with the metadata in `metadata.json`."""

    name, ending, order = "torch-export", ".pt2", 3

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        content = io.BytesIO()  # if PyTorch writes the file itself, a full disk ends the process
        with quiet():
            torch.export.save(job.program, content, extra_files={"metadata.json": json.dumps(job.metadata())})
            path.write_bytes(content.getvalue())
            module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        smallest = smallest_side(job.student.pretrained.network) if job.size is None else 1
        if smallest > 1:
            job.remarks.append(f"the torch-export file takes images of at least {smallest}x{smallest} pixels")
        return job.compare("torch-export", job.of_graph(module), smallest=smallest)

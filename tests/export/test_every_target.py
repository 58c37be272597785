"""The table of networks and targets, held to what happens; in full where tests are marked `long`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from archs.test_every_network import tiny

from basicsr.export.base import ExportJob, Student, export_formats
from basicsr.export.descriptors import image_networks, traits_of, verdict
from basicsr.export.exporting import export
from basicsr.utils.errors import UserError
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.weights.recognise import Pretrained

TARGETS = {name: entry for name, entry in export_formats().items() if entry.runtime}
NETWORKS = [name for name, _ in image_networks()]
SIZE = (24, 40)


def student_of(name: str) -> Student:
    network: Any = tiny(next(known for known in ARCH_REGISTRY.names() if known.removesuffix("_basicsr") == name)).eval()
    with torch.no_grad():
        scale = network(torch.zeros(1, 3, 24, 24)).shape[-1] // 24
    return Student(Pretrained(network, {"type": name}, name, "ours", scale, 3, 3), Path(f"{name}.pth"), "0" * 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_table_denies_is_refused_with_a_reason(name):
    given = student_of(name)
    for target in TARGETS.values():
        answer = verdict(traits_of(given.pretrained.network), target).answer
        for size in (None, SIZE):
            refusal = target.refusal(ExportJob(given, "float32", 18, "ours", size))
            assert (refusal is None) == (answer == "yes" or (answer == "with --size" and size is not None))
            assert refusal is None or ("\n" not in refusal and "; " in refusal)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_table_says_is_what_happens(tmp_path, monkeypatch, name, target):
    """What it allows is written and passes its checks; what it denies cannot be written."""
    given = student_of(name)
    answer = verdict(traits_of(given.pretrained.network), TARGETS[target]).answer
    monkeypatch.setattr(type(TARGETS[target]), "limits", {})
    monkeypatch.setattr(type(TARGETS[target]), "one_size", "")
    for size, allowed in ((None, answer == "yes"), (SIZE, answer != "no")):
        folder = tmp_path / str(size)
        if allowed:
            assert export(given, folder, targets=[target], size=size, name="net").checks
        else:
            with pytest.raises(UserError):
                export(given, folder, targets=[target], size=size, name="net")
            assert list(folder.iterdir()) == []

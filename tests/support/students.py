"""The three students of options/networks with few and narrow layers, random weights, as training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.config.yaml_files import load_yaml

_SMALLER: dict[str, dict[str, Any]] = {
    "EDSR": {"num_feat": 8, "num_block": 2},
    "RCAN": {"num_feat": 8, "num_group": 2, "num_block": 1, "squeeze_factor": 4},
    "SwinIR": {"depths": [2], "num_heads": [2], "embed_dim": 8},
}
_FOLDER = Path(__file__).resolve().parents[2] / "options" / "networks"
TRAINING = {"name": "distilled", "iteration": 7, "total_iter": 9, "losses": ["pixel"], "teacher": "EDSR", "best": {}}


def student_block(architecture: str, scale: int, **changes: Any) -> dict[str, Any]:
    """Options of a small student."""
    block = load_yaml(str(_FOLDER / f"{architecture.lower()}_student.yml")).data()
    return {**block, **_SMALLER[architecture], "upscale": scale, **changes}


def student(architecture: str, scale: int, *, seed: int = 0, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A small student in eval mode, and its options."""
    block = student_block(architecture, scale, **changes)
    torch.manual_seed(seed)
    network = build_network(block).eval()
    return network, block


def save_student(path: Path, network: nn.Module, block: dict[str, Any], **states: dict[str, Any]) -> Path:
    """Writes a checkpoint as training does; further state dicts by name."""
    content = {"params": network.state_dict(), **states, "training": TRAINING}
    torch.save({**content, "network": {**block, "scale": block["upscale"]}}, path)
    return path

"""What all options files of the papers' tables have in common."""

from __future__ import annotations

from collections.abc import Sequence

HEADER = "# yaml-language-server: $schema=../schema.json\n"
MODELS = "experiments/{}/models/net_g_latest.pth"

LABELS = {
    "scratch": "Scratch",
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "rkd": "RKD",
    "fakd": "FAKD",
    "csd": "CSD",
    "dukd": "DUKD",
    "mipkd": "MiPKD",
    "dckd": "DCKD",
    "dckd_dukd": "DCKD*",
    "dckd_as_published": "DCKD",
    "mcadkd": "MCAD-KD",
    "mcadkd_equations": "MCAD-KD",
    "mcadkd_as_published": "MCAD-KD",
}
"""What the papers' tables call a piece of options/methods."""


def indented(lines: Sequence[str]) -> list[str]:
    """The lines, one level deeper."""
    return [f"  {line}" for line in lines]

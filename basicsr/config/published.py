"""Figures that papers published, from published.csv: average PSNR (dB) and SSIM.

Of luma with an HR border of `scale` cut, but for GoPro, which is measured in RGB. What is taken from which source:

- MCAD-KD (ICCVW 2025), Tables 3 (EDSR), 4 (RCAN), 5 (SwinIR) and its ablations, 6 to 8: Ko et al., "Multi-Scale
  Contrastive-Adversarial Distillation for Super-Resolution", ICCV Workshops 2025.
- DCKD (AAAI 2025), Tables 2 (SwinIR, RCAN), 3 (deblurring), 4 (deraining), 8 (SwinIR-light) and its ablations, 5 to 7:
  "Dynamic Contrastive Knowledge Distillation for Image Restoration", AAAI 2025, arXiv:2412.08939. Figure 8 has no
  numbers.
- MiPKD (ICLR 2025), of Tables 2 (EDSR), 3 (RCAN) and 5 (EDSR of 64 channels and 16 blocks) the rows that the other two
  do not have, and its ablations, 6 to 11: Li et al., "Knowledge Distillation with Multi-granularity Mixture of Priors
  for Image Super-Resolution", ICLR 2025, arXiv:2404.02573.

"KD" is distillation from the teacher's output, which the papers also call Vanilla-KD or Logits. A row that several
papers print with the same figures is one row with several sources. The ablations of a backbone stand apart from its
tables, as "EDSR ablations".
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from basicsr.utils.errors import OptionsError
from basicsr.utils.text import nearest

ABLATIONS = " ablations"
"""The end of a backbone's name that stands for its ablations."""

_ABLATION_TABLES = {
    "MCAD-KD (ICCVW 2025)": ("6", "7", "8"),
    "MiPKD (ICLR 2025)": ("6", "7", "8", "9", "10", "11"),
    "DCKD (AAAI 2025)": ("5", "6", "7"),
}


@dataclass(frozen=True)
class PublishedRow:
    """One network as papers have it."""

    method: str  # how it was trained, or "Teacher"
    backbone: str  # such as EDSR, "EDSR c64b16", NAFNet or, in an ablation, "EDSR ablations"
    scale: int  # the upscaling factor; 1 for deblurring and deraining
    sources: tuple[str, ...]  # papers and tables that print these figures, such as "DCKD (AAAI 2025), Table 2"
    figures: Mapping[str, Mapping[str, float]]  # by dataset, then by metric: "psnr" in dB and "ssim"
    note: str | None = None  # an oddity of the row in the paper

    @property
    def is_teacher(self) -> bool:
        """Whether the others learn from it."""
        return self.method == "Teacher"


@dataclass(frozen=True)
class PublishedCost:
    """Parameters, and multiply-adds of an input of 3 x 256 x 256, at x4: Table 2 of MCAD-KD and Table 1 of MiPKD."""

    parameters: float
    multiply_adds: float


PUBLISHED_COST_SCALE = 4
PUBLISHED_COST_INPUT = (3, 256, 256)
_COSTS = {
    ("EDSR", True): PublishedCost(43.09e6, 3293.35e9),
    ("EDSR", False): PublishedCost(2.70e6, 207.28e9),
    ("EDSR c64b16", True): PublishedCost(43.09e6, 3293.35e9),
    ("EDSR c64b16", False): PublishedCost(1.52e6, 129.97e9),
    ("RCAN", True): PublishedCost(15.59e6, 1044.03e9),
    ("RCAN", False): PublishedCost(5.17e6, 366.98e9),
    ("SwinIR", True): PublishedCost(11.90e6, 861.27e9),
    ("SwinIR", False): PublishedCost(1.24e6, 121.48e9),
}


def published_cost(row: PublishedRow) -> PublishedCost | None:
    """What the network of `row` costs; None where the papers do not say."""
    backbone = row.backbone.removesuffix(ABLATIONS)
    return _COSTS.get((backbone, row.is_teacher)) if row.scale == PUBLISHED_COST_SCALE else None


def published_backbones() -> tuple[str, ...]:
    """The backbones that there are figures of, in the order of the file."""
    return tuple(dict.fromkeys(row.backbone for row in _all_rows()))


def published_rows(backbone: str, scale: int) -> tuple[PublishedRow, ...]:
    """The rows of a backbone, in small or large letters, at a scale: the teacher first, else in the papers' order.

    Raises:
        OptionsError: there are no figures of such a backbone at any scale.
    """
    known = published_backbones()
    if backbone.lower() not in map(str.lower, known):
        hint = nearest(backbone, list(known))
        raise OptionsError(f"report: published is '{backbone}'; there are figures of {', '.join(known)}{hint}")
    rows = [row for row in _all_rows() if row.backbone.lower() == backbone.lower() and row.scale == scale]
    return tuple(sorted(rows, key=lambda row: not row.is_teacher))


@cache
def _all_rows() -> tuple[PublishedRow, ...]:
    figures: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    notes: dict[tuple[str, ...], str | None] = {}
    with files("basicsr.config").joinpath("published.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key: tuple[str, ...] = (line["source"], line["table"], line["backbone"], line["scale"], line["method"])
            values = {"psnr": float(line["psnr_db"]), "ssim": float(line["ssim"])}
            figures.setdefault(key, {})[line["dataset"]] = values
            notes.setdefault(key, line["note"] or None)  # stands in the row's first line
    rows: list[PublishedRow] = []
    for key, by_dataset in figures.items():
        source, table, backbone, scale, method = key
        backbone += ABLATIONS if table in _ABLATION_TABLES[source] else ""
        sources = (f"{source}, Table {table}",)
        row = PublishedRow(method, backbone, int(scale), sources, by_dataset, notes[key])
        for index, other in enumerate(rows):
            if replace(other, sources=row.sources, note=row.note) == row:  # several papers print the same figures
                rows[index] = replace(other, sources=other.sources + row.sources, note=other.note or row.note)
                break
        else:
            rows.append(row)
    return tuple(rows)

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
"""What a backbone's name ends in where its ablations are meant."""

_ABLATION_TABLES = {
    "MCAD-KD (ICCVW 2025)": ("6", "7", "8"),
    "MiPKD (ICLR 2025)": ("6", "7", "8", "9", "10", "11"),
    "DCKD (AAAI 2025)": ("5", "6", "7"),
}
_CAPTION_OF_TABLE_8 = (
    "the caption says a student of 5 blocks to a group (c64b5g10); the figures are those of the student of 6 in Table 3"
)
_SCALE_OF_C32 = "the paper does not print the scale; the figures are of the size of those at x4"
_TEACHER_BELOW = "as published; on Test1200 the teacher is below all students"

# By source, table, backbone, scale and method.
_NOTES = {
    ("MCAD-KD (ICCVW 2025)", "5", "SwinIR", 2, "DUKD"): (
        "as published; these figures of SwinIR x2 DUKD equal those of RCAN x2 Scratch in the same paper"
    ),
    ("DCKD (AAAI 2025)", "2", "RCAN", 4, "DCKD*"): "DCKD* is DCKD combined with DUKD",
    ("DCKD (AAAI 2025)", "2", "SwinIR", 4, "DCKD*"): "DCKD* is DCKD combined with DUKD",
    ("DCKD (AAAI 2025)", "4", "Restormer", 1, "Teacher"): _TEACHER_BELOW,
    ("DCKD (AAAI 2025)", "4", "Restormer", 1, "DCKD"): (
        "as published; on Rain100L the text has 1.8 dB over MPRNet and 0.55 dB over KD, the table 1.62 and 0.85 (over"
        " Scratch it has 0.55)"
    ),
    ("DCKD (AAAI 2025)", "8", "SwinIR-light", 4, "Scratch"): (
        "the row's label cannot be read in the text at hand; it is the first of three, before MCLIR and DCKD"
    ),
    ("MiPKD (ICLR 2025)", "8", "RCAN", 4, "MLP encoders"): _CAPTION_OF_TABLE_8,
    ("MiPKD (ICLR 2025)", "8", "RCAN", 4, "convolutional encoders"): _CAPTION_OF_TABLE_8,
    ("MiPKD (ICLR 2025)", "9", "RCAN c32b5g5", 4, "grid mask"): (
        "as published; beside its PSNR the SSIM is 0.004 below those of the other masks"
    ),
    **{
        ("MiPKD (ICLR 2025)", "6", "RCAN c32b5g5", 4, method): _SCALE_OF_C32
        for method in ("no mixer", "feature prior mixer alone", "block prior mixer alone", "both mixers")
    },
}
"""What is odd about a row, as it stands in the paper."""


@dataclass(frozen=True)
class PublishedRow:
    """One network as papers have it.

    Attributes:
        method: how it was trained, or "Teacher".
        backbone: such as EDSR, "EDSR c64b16", NAFNet or, in an ablation, "EDSR ablations".
        scale: the upscaling factor; 1 for deblurring and deraining.
        sources: papers and tables that print these figures, such as "DCKD (AAAI 2025), Table 2".
        figures: by dataset, then by metric: "psnr" in dB and "ssim".
        note: what a reader must know about the row; None if nothing.
    """

    method: str
    backbone: str
    scale: int
    sources: tuple[str, ...]
    figures: Mapping[str, Mapping[str, float]]
    note: str | None = None

    @property
    def is_teacher(self) -> bool:
        """Whether it is the network that the others learn from."""
        return self.method == "Teacher"


@dataclass(frozen=True)
class PublishedCost:
    """What one forward pass costs at x4, as Table 2 of MCAD-KD and Table 1 of MiPKD have it.

    Attributes:
        parameters: how many.
        multiply_adds: of an input of 3 x 256 x 256.
    """

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
    """The rows of a backbone at a scale, the teacher first, else in the papers' order; none if there are none.

    Args:
        backbone: one of `published_backbones()`, in small or large letters.
        scale: the upscaling factor.

    Raises:
        OptionsError: there are no figures of such a backbone at any scale.
    """
    by_name = {name.lower(): name for name in published_backbones()}
    if backbone.lower() not in by_name:
        known = published_backbones()
        hint = nearest(backbone, list(known))
        raise OptionsError(f"report: published is '{backbone}'; there are figures of {', '.join(known)}{hint}")
    rows = [row for row in _all_rows() if row.backbone == by_name[backbone.lower()] and row.scale == scale]
    return tuple(sorted(rows, key=lambda row: not row.is_teacher))


@cache
def _all_rows() -> tuple[PublishedRow, ...]:
    figures: dict[tuple[str, str, str, int, str], dict[str, dict[str, float]]] = {}
    with files("basicsr.config").joinpath("published.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key = (line["source"], line["table"], line["backbone"], int(line["scale"]), line["method"])
            values = {"psnr": float(line["psnr_db"]), "ssim": float(line["ssim"])}
            figures.setdefault(key, {})[line["dataset"]] = values
    rows: list[PublishedRow] = []
    for key, by_dataset in figures.items():
        source, table, backbone, scale, method = key
        if table in _ABLATION_TABLES[source]:
            backbone += ABLATIONS
        row = PublishedRow(method, backbone, scale, (f"{source}, Table {table}",), by_dataset, _NOTES.get(key))
        _add(rows, row)
    return tuple(rows)


def _add(rows: list[PublishedRow], row: PublishedRow) -> None:
    """Adds `row`, or its source to the row that says the same."""
    for index, other in enumerate(rows):
        if replace(other, sources=row.sources, note=row.note) == row:
            rows[index] = replace(other, sources=other.sources + row.sources, note=other.note or row.note)
            return
    rows.append(row)

"""The published figures: all there, and what the papers print."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import get_args

import pytest

from basicsr.config.published import published_backbones, published_cost, published_rows
from basicsr.config.schema import Published
from basicsr.utils.errors import OptionsError


def lines() -> list[dict[str, str]]:
    with files("basicsr.config").joinpath("published.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(backbone: str, scale: int, method: str, dataset: str) -> list[tuple[float, float]]:
    return [
        (row.figures[dataset]["psnr"], row.figures[dataset]["ssim"])
        for row in published_rows(backbone, scale)
        if row.method == method
    ]


ROWS_OF_TABLES = {
    "MCAD-KD (ICCVW 2025)": {"3": 27, "4": 24, "5": 15, "6": 3, "7": 3, "8": 3},
    "DCKD (AAAI 2025)": {"2": 38, "3": 10, "4": 6, "5": 4, "6": 4, "7": 6, "8": 3},
    "MiPKD (ICLR 2025)": {"2": 6, "3": 3, "5": 8, "6": 4, "7": 3, "8": 2, "9": 4, "10": 2, "11": 4},
}
"""Of MiPKD's Tables 2 and 3 what no other paper has, the teachers and AT; of its ablations, and of the others, all."""

DATASETS = {("DCKD (AAAI 2025)", "3"): 1, ("DCKD (AAAI 2025)", "4"): 5, ("DCKD (AAAI 2025)", "8"): 4} | {
    (source, table): columns
    for columns, tables in {
        1: {"MCAD-KD (ICCVW 2025)": "678", "DCKD (AAAI 2025)": "7", "MiPKD (ICLR 2025)": "679"},
        2: {"DCKD (AAAI 2025)": "56"},
    }.items()
    for source, numbers in tables.items()
    for table in numbers
}
"""Columns of the tables that do not have Set5, Set14, BSD100 and Urban100."""


def test_the_file_is_complete_and_says_nothing_twice():
    table = lines()
    keys = [tuple(line[key] for key in ("source", "table", "backbone", "scale", "method", "dataset")) for line in table]
    assert len(set(keys)) == len(table) == 610
    for line in table:
        assert 24 < float(line["psnr_db"]) < 40, line
        assert 0.7 < float(line["ssim"]) < 0.98, line
    by_row: dict[tuple[str, ...], set[str]] = {}
    for key in keys:
        by_row.setdefault(key[:-1], set()).add(key[-1])
    counted: dict[str, dict[str, int]] = {}
    for (source, number, *_), datasets in by_row.items():
        assert len(datasets) == DATASETS.get((source, number), 4)
        counted.setdefault(source, {}).setdefault(number, 0)
        counted[source][number] += 1
    assert counted == ROWS_OF_TABLES


def test_higher_scales_are_harder():
    found = {
        (line["source"], line["backbone"], line["method"], line["dataset"], line["scale"]): line for line in lines()
    }
    compared = 0
    for (*key, scale), line in found.items():
        for harder in range(int(scale) + 1, 5):
            if (*key, str(harder)) in found:
                assert float(line["psnr_db"]) > float(found[(*key, str(harder))]["psnr_db"]), line
                compared += 1
    assert compared > 400


def test_ablations_end_in_the_papers_own_rows():
    """What is left of an ablation with everything on is the method's row in the paper's main table."""
    (mcadkd,) = (row.figures["Urban100"] for row in published_rows("EDSR", 4) if row.method == "MCAD-KD")
    (swinir,) = (row.figures["Urban100"] for row in published_rows("SwinIR", 4) if row.method == "MCAD-KD")
    (dckd,) = (row.figures["Urban100"] for row in published_rows("RCAN", 2) if row.method == "DCKD")
    of_dckd = [row for row in published_rows("RCAN", 2) if any("DCKD (" in source for source in row.sources)]
    (logits,) = (row.figures["Urban100"] for row in of_dckd if row.method == "KD")
    (mipkd,) = (row.figures for row in published_rows("RCAN", 4) if row.method == "MiPKD")
    whole = {
        ("EDSR ablations", 4): {"contrastive and adversarial loss": mcadkd, "image and patch level": mcadkd},
        ("SwinIR ablations", 4): {"image and patch level": swinir},
        ("RCAN ablations", 2): {
            "DCR and DMM": dckd, "random noise": dckd, "lambda_dcl 0.1": dckd, "lambda_ce 0.001": dckd,
            "neither DCR nor DMM": logits,
        },
        ("RCAN ablations", 4): dict.fromkeys(
            ("convolutional encoders", "auto-encoder loss", "lambda_feat 1 lambda_block 0.1"), mipkd["Urban100"]
        ),
    }  # fmt: skip
    for (backbone, scale), expected in whole.items():
        found = {row.method: row.figures["Urban100"] for row in published_rows(backbone, scale)}
        assert {method: found[method] for method in expected} == expected
        assert not set(found) & {row.method for row in published_rows(backbone.removesuffix(" ablations"), scale)}
    assert [row.method for row in published_rows("RCAN c32b5g5 ablations", 4) if row.note] == [
        "no mixer", "feature prior mixer alone", "block prior mixer alone", "both mixers", "grid mask",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "backbone, method, expected",
    [
        ("NAFNet", "DCKD", {"GoPro": (31.43, 0.9487)}),
        ("NAFNet", "Teacher", {"GoPro": (32.87, 0.9606)}),
        ("MT-RNN", "MT-RNN", {"GoPro": (31.15, 0.9450)}),
        ("Restormer", "DCKD", {"GoPro": (31.78, 0.9521), "Rain100L": (38.02, 0.9762), "Test1200": (33.95, 0.9326)}),
        ("Restormer", "KD", {"GoPro": (31.61, 0.9501), "Rain100L": (37.17, 0.9712), "Test2800": (33.81, 0.9399)}),
        ("MPRNet", "MPRNet", {"Test100": (30.27, 0.8970), "Rain100H": (30.41, 0.8900)}),
    ],
)
def test_figures_of_restoration_are_those_that_dckd_prints(backbone, method, expected):
    rows = [row for row in published_rows(backbone, 1) if row.method == method]
    for dataset, pair in expected.items():
        found = [row.figures[dataset] for row in rows if dataset in row.figures]
        assert [(figures["psnr"], figures["ssim"]) for figures in found] == [pair]


@pytest.mark.parametrize(
    "backbone, scale, method, dataset, expected",
    [
        ("EDSR", 2, "MCAD-KD", "Set5", [(38.19, 0.9611)]),
        ("EDSR", 3, "FitNet", "Urban100", [(26.61, 0.8167)]),
        ("EDSR", 4, "MCAD-KD", "Urban100", [(26.51, 0.7967)]),
        ("EDSR", 4, "Teacher", "BSD100", [(27.81, 0.7440)]),
        ("RCAN", 2, "MCAD-KD", "Urban100", [(32.90, 0.9348)]),
        ("RCAN", 4, "Scratch", "Set5", [(32.31, 0.8966), (32.38, 0.8971)]),  # the papers differ
        ("RCAN", 4, "DCKD*", "Urban100", [(26.74, 0.8054)]),
        ("RCAN", 3, "AT", "Set14", [(30.43, 0.8438)]),
        ("SwinIR", 2, "MCAD-KD", "Urban100", [(32.70, 0.9333)]),
        ("SwinIR", 3, "DCKD", "Set14", [(30.57, 0.8475)]),
        ("SwinIR", 4, "MCAD-KD", "BSD100", [(27.72, 0.7419)]),
        ("EDSR c64b16", 4, "MiPKD+MiPKD", "Set5", [(32.17, 0.8947)]),
        ("EDSR ablations", 4, "adversarial loss alone", "Urban100", [(26.35, 0.7948)]),
        ("SwinIR ablations", 4, "patch level alone", "Urban100", [(26.55, 0.8002)]),
        ("RCAN ablations", 2, "DMM alone", "Set14", [(33.92, 0.9205)]),
        ("RCAN ablations", 4, "no auto-encoder loss", "Set5", [(32.40, 0.8976)]),
        ("RCAN c32b5g5 ablations", 4, "no encoder", "Urban100", [(24.51, 0.7149)]),
        ("SwinIR-light", 4, "DCKD", "Manga109", [(31.20, 0.9180)]),
    ],
)
def test_figures_are_those_that_the_papers_print(backbone, scale, method, dataset, expected):
    assert figures(backbone, scale, method, dataset) == expected


def test_the_row_that_equals_another_network_s_is_kept_and_marked():
    (row,) = [row for row in published_rows("SwinIR", 2) if row.method == "DUKD"]
    scratch = next(row for row in published_rows("RCAN", 2) if row.method == "Scratch")
    assert row.figures == scratch.figures
    assert row.note is not None
    assert [other.method for other in published_rows("SwinIR", 2) if other.note] == ["DUKD"]


def test_equal_rows_of_several_papers_are_one_row_with_all_sources():
    (row,) = [row for row in published_rows("SwinIR", 3) if row.method == "MiPKD"]
    assert row.sources == ("MCAD-KD (ICCVW 2025), Table 5", "DCKD (AAAI 2025), Table 2")


def test_backbones_are_found_in_any_case_and_unknown_ones_refused():
    assert set(published_backbones()) == set(get_args(Published))
    assert published_rows("edsr", 2) == published_rows("EDSR", 2)
    assert published_rows("EDSR", 8) == ()
    with pytest.raises(OptionsError, match="there are figures of EDSR, RCAN, SwinIR, EDSR c64b16, MT-RNN, "):
        published_rows("VDSR", 2)


def test_costs_are_known_of_every_row_of_the_tables_at_x4_and_of_no_other():
    for backbone in published_backbones():
        for row in published_rows(backbone, 4):
            cost = published_cost(row)
            assert (cost is None) == backbone.startswith(("SwinIR-light", "RCAN c32b5g5"))
            assert cost is None or (cost.multiply_adds > 50e9 and cost.parameters > 1e6)
        assert all(published_cost(row) is None for scale in (1, 2) for row in published_rows(backbone, scale))

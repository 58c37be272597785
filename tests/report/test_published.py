"""The published figures: all there, and what the papers print."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from basicsr.report.published import published_backbones, published_cost, published_rows
from basicsr.utils.errors import OptionsError


def lines() -> list[dict[str, str]]:
    with files("basicsr.report").joinpath("published.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(backbone: str, scale: int, method: str, dataset: str) -> list[tuple[float, float]]:
    return [
        (row.figures[dataset]["psnr"], row.figures[dataset]["ssim"])
        for row in published_rows(backbone, scale)
        if row.method == method
    ]


def test_the_file_is_complete_and_says_nothing_twice():
    table = lines()
    assert len(table) == 484
    keys = [tuple(line[key] for key in ("source", "table", "backbone", "scale", "method", "dataset")) for line in table]
    assert len(set(keys)) == 484
    for line in table:
        assert 25 < float(line["psnr_db"]) < 39, line
        assert 0.7 < float(line["ssim"]) < 0.97, line
        assert line["dataset"] in ("Set5", "Set14", "BSD100", "Urban100")
    by_row: dict[tuple[str, ...], set[str]] = {}
    for key in keys:
        by_row.setdefault(key[:-1], set()).add(key[-1])
    assert all(len(datasets) == 4 for datasets in by_row.values())


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
    assert published_backbones() == ("EDSR", "RCAN", "SwinIR", "EDSR c64b16")
    assert published_rows("edsr", 2) == published_rows("EDSR", 2)
    assert published_rows("EDSR", 8) == ()
    with pytest.raises(OptionsError, match="there are figures of EDSR, RCAN, SwinIR, EDSR c64b16"):
        published_rows("VDSR", 2)


def test_costs_are_known_of_every_row_at_x4_and_of_no_other():
    for backbone in published_backbones():
        for row in published_rows(backbone, 4):
            cost = published_cost(row)
            assert cost is not None
            assert cost.multiply_adds > 50e9 and cost.parameters > 1e6
        assert all(published_cost(row) is None for row in published_rows(backbone, 2))

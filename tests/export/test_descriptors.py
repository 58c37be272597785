"""What is known of networks and targets before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
from support.students import student

from basicsr.archs.bicubic_arch import Bicubic
from basicsr.archs.luma import LumaNetwork
from basicsr.archs.traits import Trait
from basicsr.export.base import export_formats
from basicsr.export.descriptors import Limit, image_networks, listing, refusal, table, traits_of, verdict

TARGETS = [entry for entry in export_formats().values() if entry.runtime]


@dataclass(frozen=True)
class Small:
    """A target that takes little."""

    name: str = "small"
    runtime: str = "small"
    one_size: str = ""
    precisions: tuple[str, ...] = ("float32",)
    limits: dict[Trait, Limit] = field(
        default_factory=lambda: {
            "attention in windows": Limit("it has no axes beyond the fourth"),
            "sides extended to multiples": Limit("it computes with no sizes", with_size=True),
        }
    )


@pytest.mark.parametrize(("name", "kind"), list(image_networks()))
def test_a_networks_traits_are_among_the_known_ones(name, kind):
    assert getattr(kind, "traits", frozenset()) <= set(get_args(Trait))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_targets_limits_are_about_traits_that_some_network_has(target):
    everywhere = set().union(*(getattr(kind, "traits", ()) for _, kind in image_networks()))
    assert set(target.limits) <= everywhere
    assert all(limit.reason and not limit.reason.endswith(".") for limit in target.limits.values())


def test_the_strictest_limit_decides():
    assert verdict({"layer norm over channels"}, Small()).answer == "yes"
    assert verdict({"sides extended to multiples"}, Small()).answer == "with --size"
    both = verdict({"sides extended to multiples", "attention in windows"}, Small())
    assert (both.answer, both.trait) == ("no", "attention in windows")
    assert verdict(set(), Small(one_size="its files have one size")).answer == "with --size"


def test_a_refusal_says_what_why_and_what_to_do_instead():
    network, _ = student("SwinIR", 2)
    other, further = Small(name="large", limits={}), Small(name="larger", limits={})
    plain_format = Small(name="plain", runtime="", limits={})
    line = refusal("SwinIR", network, Small(), None, [Small(), plain_format, other, further])
    assert line == "SwinIR has attention in windows: it has no axes beyond the fourth; take large or larger"
    line = refusal("SwinIR", network, Small(), (64, 64), [Small()])
    assert line == "SwinIR has attention in windows: it has no axes beyond the fourth; no target takes it"
    assert refusal("SwinIR", network, other, None, []) is None


def test_a_size_is_asked_for_where_it_helps():
    network, _ = student("EDSR", 2)
    target = Small(one_size="its files are for images of one size")
    line = refusal("EDSR", network, target, None, [])
    assert line == "its files are for images of one size; give --size H W, for a file of one size"
    assert refusal("EDSR", network, target, (64, 64), []) is None


def test_a_gray_network_on_colour_images_has_the_traits_of_its_enlargement():
    network, _ = student("EDSR", 2)
    assert traits_of(network) == frozenset()
    assert traits_of(LumaNetwork(network, 2)) == traits_of(Bicubic(upscale=2)) == {"bicubic enlargement inside"}
    assert traits_of(LumaNetwork(network, 1)) == frozenset()


def test_the_table_in_the_docs_is_what_the_command_prints():
    page = (Path(__file__).parents[2] / "docs" / "targets" / "networks.md").read_text("utf-8")
    assert page.split("```text\n")[1].split("\n```")[0] == listing(TARGETS), "paste what export.py --list prints"


def test_the_table_has_every_network_and_target():
    header, *rows = table(TARGETS)
    assert len(header) == len(TARGETS) + 1 and {len(row) for row in rows} == {len(header)}
    assert {"EDSR", "SwinIR", "SRVGGNetCompact", "RLFN", "SPAN"} <= {row[0] for row in rows}
    assert {cell for row in rows for cell in row[1:]} <= {"yes", "with --size", "no"}

"""The schema for editors is up to date and says what the loader says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from basicsr.config.schema import Options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_schema():
    return importlib.import_module("make_schema")


@pytest.fixture(scope="module")
def schema():
    return json.loads((ROOT / "options" / "schema.json").read_text())


def test_schema_file_is_up_to_date(make_schema, schema):
    """The optimizers' keys are those of the pinned torch: of another one, keys and texts may differ there only."""
    text = make_schema.schema_text()
    if torch.__version__.split("+")[0] == _pinned("torch"):
        assert (ROOT / "options" / "schema.json").read_text() == text, "run scripts/make_schema.py"
    made = json.loads(text)
    made["$defs"]["optimizer"] = schema["$defs"]["optimizer"]
    assert made == schema


def _pinned(package):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (version,) = [line.removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}==")]
    return version


def test_schema_knows_every_top_level_key(schema):
    keys = set(Options.model_fields) - {"root", "skipped", "sources"}
    assert keys | {"_base_", "discriminator"} == set(schema["$defs"]["Options"]["properties"])


def test_schema_knows_every_network_and_loss_and_their_arguments(schema):
    for kind, registry, more in (("network", ARCH_REGISTRY, ["auto"]), ("loss", LOSS_REGISTRY, [])):
        names = schema["$defs"][kind]["properties"]["type"]["enum"]
        assert names == [name.removesuffix("_basicsr") for name in registry.names()] + more
    cases = {case["if"]["properties"]["type"]["const"]: case["then"] for case in schema["$defs"]["network"]["allOf"]}
    edsr = cases["EDSR"]
    assert edsr["additionalProperties"] is False
    assert edsr["properties"]["num_feat"]["type"] == "integer"
    assert edsr["properties"]["num_feat"]["default"] == 64
    assert len(edsr["properties"]["num_feat"]["description"]) > 5


def test_every_reference_in_the_schema_resolves(schema):
    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(schema))
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(schema["$defs"])
    assert len(found) > 10


@pytest.mark.parametrize("metric", ["psnr", "ssim", "psnr_pt", "ssim_pt", "lpips", "pyiqa"])
def test_editors_describe_the_arguments_of_metrics(metric):
    """The texts come from the docstrings' `Args`."""
    cases = json.loads((ROOT / "options" / "schema.json").read_text())["$defs"]["metric"]["allOf"]
    (case,) = (case["then"] for case in cases if case["if"]["properties"]["type"]["const"] == f"calculate_{metric}")
    arguments = {name: entry for name, entry in case["properties"].items() if name not in ("type", "better", "_base_")}
    assert arguments and all("description" in json.dumps(entry) for entry in arguments.values())

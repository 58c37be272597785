import hashlib

import pytest
from support.graphs import write_graph

from basicsr.latency.candidates import Candidate
from basicsr.latency.machine import EnergyMeter
from basicsr.latency.measuring import Limits, measure
from basicsr.utils.errors import DataError

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
FEW = Limits(rounds=3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A file, a file for one other size, an untrained network, and what cannot be run."""
    folder = tmp_path_factory.mktemp("candidates")
    any_size = write_graph(folder / "any.onnx")
    fixed = write_graph(folder / "fixed.onnx", size=(16, 16))
    (folder / "damaged.onnx").write_bytes(b"no graph")
    lines = []
    found = measure(
        [
            Candidate("file", any_size, (20, 24)),
            Candidate("other size", fixed, (20, 24)),
            Candidate("network", EDSR, (20, 24), settings={"layout": "channels_last", "precision": "bf16"}),
            Candidate("damaged", folder / "damaged.onnx", (20, 24)),
            Candidate("missing", folder / "missing.onnx", (20, 24)),
            Candidate("network elsewhere", EDSR, (20, 24), runtime="onnxruntime"),
            Candidate("unknown setting", any_size, (20, 24), settings={"speed": "high"}),
        ],
        FEW,
        report=lines.append,
    )
    return folder, found, lines


def test_files_and_networks_are_measured_together(measured):
    folder, found, lines = measured
    file, network = found.figures
    assert (file.candidate, file.runtime, file.precision) == ("file", "onnxruntime", "float32")
    assert (network.candidate, network.runtime, network.precision) == ("network", "pytorch", "bf16")
    assert file.sha256 == hashlib.sha256((folder / "any.onnx").read_bytes()).hexdigest()
    assert network.sha256 is None and network.network == EDSR
    for figure in found.figures:
        assert figure.size == (20, 24) and figure.scale == 2 and figure.channels == 3 and figure.rounds == 3
        assert 0 < figure.low_ms <= figure.median_ms <= figure.high_ms
        assert figure.runtime_version
    assert 10 < file.peak_memory_mb < network.peak_memory_mb, "the file's process never imports PyTorch"
    assert [line.split(":")[0] for line in lines] == ["file", "network"]


def test_what_fails_leaves_the_others_their_turn(measured):
    _, found, _ = measured
    assert list(found.failed) == [
        *("other size", "damaged", "missing", "network elsewhere", "unknown setting"),
    ]
    assert found.failed["other size"] == "other size takes images of 16x16 only, asked was 20x24"
    assert "missing.onnx" in found.failed["missing"]
    assert "export it first" in found.failed["network elsewhere"]
    assert found.failed["unknown setting"] == "onnxruntime has no setting speed"
    assert all("\n" not in reason for reason in found.failed.values())


def test_two_candidates_of_one_label_are_refused(tmp_path):
    with pytest.raises(DataError, match="two candidates are called a"):
        measure([Candidate("a", EDSR, (8, 8)), Candidate("a", EDSR, (8, 16))])


def test_it_stops_between_rounds_when_asked_to(tmp_path):
    asked = []

    def should_stop():
        asked.append(True)
        return True

    found = measure([Candidate("file", write_graph(tmp_path / "a.onnx"), (8, 8))], should_stop=should_stop)
    assert found.figures[0].rounds == 1 and asked
    assert "1 round only" in found.figures[0].doubt


def test_energy_is_that_of_the_packages_over_the_counters_end(tmp_path):
    for number, (name, counter) in enumerate((("package-0", 900_000), ("package-1", 5_000_000), ("psys", 7))):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{counter}\n")
        (zone / "max_energy_range_uj").write_text("1000000\n")
    meter = EnergyMeter(tmp_path)
    assert meter.reason == "" and meter.joules() == [0.9, 5.0]
    assert meter.between([0.9, 5.0], [0.2, 5.5]) == pytest.approx(0.3 + 0.5)


def test_where_the_system_tells_no_energy_the_reason_is_told(tmp_path):
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == [] and "RAPL" in meter.reason

"""Training and testing with networks that are recognised from their files: `type: auto`."""

from __future__ import annotations

import pytest
import torch
import yaml
from support import published
from support.training import changed, differences, finish, without_teacher

from basicsr import test, train
from basicsr.engine.process.command import run_command
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained

AUTO = {"type": "auto"}
# The discriminator and the contrastive loss have nothing to do with where the teacher comes from.
SHORT = {"train__adversarial_opt": None, "network_d": None, "train__contrastive_opt": None}
SHORT |= {"train__total_iter": 2, "val__val_freq": 2}


@pytest.fixture
def options(mcadkd):
    return changed(mcadkd, **SHORT)


def with_teacher(options, file, block=AUTO, **changes):
    return changed(options, network_t=dict(block), path={"pretrain_network_t": str(file)}, **changes)


def test_a_recognised_teacher_teaches_what_the_same_network_by_its_options_does(options, tmp_path):
    torch.manual_seed(0)
    teacher = published.edsr(scale=2, width=12, blocks=3)
    torch.save(teacher.state_dict(), tmp_path / "published.pt")
    auto = finish(with_teacher(options, tmp_path / "published.pt"), tmp_path / "auto")
    found = recognise(teacher.state_dict())
    torch.save({"params": found.state}, tmp_path / "ours.pth")
    block = {key: list(value) if isinstance(value, tuple) else value for key, value in found.options.items()}
    told = finish(with_teacher(options, tmp_path / "ours.pth", block), tmp_path / "told")
    assert differences(auto["g"]["params"], told["g"]["params"]) == []
    assert auto["g"]["training"]["teacher"] == "EDSR"
    log = next((tmp_path / "auto/experiments/tiny").glob("train_*.log")).read_text()
    assert "recognised EDSR with 12 channels, 3 blocks, 3 colours, x2 (layout: EDSR-PyTorch)" in log


def test_a_network_that_is_trained_on_is_saved_with_all_that_its_file_told(options, tmp_path):
    torch.manual_seed(0)
    source = published.edsr(scale=2, mean=(0.2, 0.4, 0.6))
    torch.save(source.state_dict(), tmp_path / "published.pt")
    path = {"pretrain_network_g": str(tmp_path / "published.pt")}
    resting = {"train__optim_g": {"type": "SGD", "lr": 1e-30}, "train__ema_decay": 0.0}
    saved = finish(without_teacher(options, network_g=AUTO, path=path, **resting), tmp_path)
    assert saved["g"]["network"]["rgb_mean"] == pytest.approx([0.2, 0.4, 0.6])
    network = load_pretrained(tmp_path / "experiments/tiny/models/net_g_latest.pth")
    x = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert (network.network(x) - source(x)).abs().max() < 2e-5
    assert (network.layout, network.remark) == ("ours", None)


@pytest.fixture
def esrgan(tmp_path):
    """A file with a network that only spandrel has."""
    torch.manual_seed(0)
    network = published.spandrel_architecture("ESRGAN").ESRGAN(num_filters=8, num_blocks=1, scale=2, plus=True)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "esrgan.pth")
    return tmp_path / "esrgan.pth"


def test_spandrels_network_teaches_and_is_trained_on(options, esrgan, tmp_path):
    taught = finish(with_teacher(options, esrgan), tmp_path)
    assert taught["g"]["training"]["teacher"] == "ESRGAN"
    path = {"pretrain_network_g": str(esrgan)}
    tuned = finish(without_teacher(options, name="tuned", network_g=AUTO, path=path), tmp_path)
    before = torch.load(esrgan, weights_only=True)["params_ema"]
    assert tuned["g"]["params"].keys() == {f"model.{key}" for key in before}
    assert not torch.equal(tuned["g"]["params"]["model.model.0.weight"], before["model.0.weight"])


def test_rows_of_a_test_are_recognised_too(options, esrgan, tmp_path):
    torch.save(published.edsr(scale=2).state_dict(), tmp_path / "edsr.pt")
    networks = {
        "theirs": {"path": str(esrgan)},
        "published": {"path": str(tmp_path / "edsr.pt"), "network": AUTO},
    }
    wanted = {key: options[key] for key in ("name", "scale", "num_gpu")}
    wanted |= {"datasets": {"test": options["datasets"]["val"]}, "networks": networks}
    wanted |= {"val": {"metrics": options["val"]["metrics"]}, "report": {"html": False, "plots": False, "speed": False}}
    results = test.test_pipeline(wanted, root=tmp_path)
    assert [row.name for row in results.scales[0].rows] == ["theirs", "published"]
    assert all(torch.tensor(row.evaluations["val"].values).isfinite().all() for row in results.scales[0].rows)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (published.edsr(scale=3).state_dict(), "wrong scale: it is EDSR for x3, the options' scale is 2"),
        ({"a.weight": torch.ones(1)}, "holds no network that is recognised"),
    ],
    ids=["scale", "unknown"],
)
@pytest.mark.parametrize("label", ["g", "t"])
def test_files_that_do_not_serve_end_in_one_line(label, state, message, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(state, tmp_path / "net.pth")
    path = {f"pretrain_network_{label}": str(tmp_path / "net.pth"), "allow_random_teacher": True}
    (tmp_path / "options.yml").write_text(yaml.safe_dump(changed(options, path=path, **{f"network_{label}": AUTO})))
    code = run_command(lambda: train.main(["-opt", str(tmp_path / "options.yml")]))
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert code == 4 and len(errors) == 1 and message in errors[0]

"""scripts/quantize.py on small networks and real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantize import main
from support.networks import save_checkpoint
from support.quantized import BLOCKS

from basicsr.archs import build_network
from basicsr.files.images import imwrite
from basicsr.quantization.network import quantization_of
from basicsr.quantization.sensitivity import sensitivity
from basicsr.utils.errors import CheckpointError, DataError, OptionsError, UserError
from basicsr.weights.recognise import load_pretrained


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that makes images, and pairs of images."""
    folder = tmp_path_factory.mktemp("quantize")
    torch.manual_seed(0)
    block = {**BLOCKS["Compact"], "num_conv": 1}
    save_checkpoint(folder / "net_g.pth", build_network(block), block, 2)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        imwrite(image, folder / "LR" / f"{name}x2.png")
        imwrite(image.repeat(2, 0).repeat(2, 1), folder / "HR" / f"{name}.png")
    (folder / "damaged").mkdir()
    (folder / "folder.pth").mkdir()
    (folder / "damaged" / "a.png").write_bytes((folder / "LR" / "ax2.png").read_bytes()[:100])
    return folder


def command(files: Path, output: Path, **changed: Any) -> list[str]:
    given: dict[str, Any] = {
        "model": files / "net_g.pth",
        "output": output,
        "calibration": files / "LR",
        "validation": [files / "HR", files / "LR"],
        "filename_tmpl": "{}x2",
        **changed,
    }
    words = []
    for key, value in given.items():
        if value is not None:
            words += ["-opt" if key == "opt" else f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_it_writes_a_checkpoint_and_says_what_each_layer_costs(files, tmp_path, capsys):
    output = tmp_path / "made" / "net_g_int8.pth"
    assert main([*command(files, output), "--layers", "body.2=int16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("SRVGGNetCompact x2, quantised, 7/8 and 16 bits, 3 layers, calibrated on 2 images")
    _, before, after, lost = lines[2].rsplit(maxsplit=3)
    assert float(before) - float(after) == pytest.approx(float(lost), abs=0.0011)
    rows = [line.split() for line in lines[4:7]]
    assert [row[0] for row in rows] == ["body.0", "body.2", "body.4"]
    assert [row[1] for row in rows] == ["int8", "int16", "int8"]
    assert rows[0][2:5] == ["0", "to", "1"]  # the image
    found = load_pretrained(output)
    quantization = quantization_of(found.network)
    assert quantization is not None and quantization.settings.weight_bits == 7
    float_state = load_pretrained(files / "net_g.pth").network.state_dict()
    assert all(torch.equal(value, found.network.state_dict()[key]) for key, value in float_state.items())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"calibration": None}, OptionsError, "no images for calibration: give -opt FILE or --calibration"),
        ({"calibration": "{files}/nowhere"}, DataError, "nowhere"),
        ({"calibration": "{files}/damaged", "output": "{new}/made/x.pth"}, DataError, "damaged/a.png"),
        ({"output": "{files}/net_g.pth/x.pth"}, CheckpointError, "cannot write"),
        ({"output": "{files}/net_g.pth"}, OptionsError, "is the network to be read"),
        ({"output": "{files}/folder.pth"}, CheckpointError, "there is a folder of this name"),
        ({"output": "{files}/x.onnx"}, OptionsError, r"ends in \.pth"),
        ({"images": 0}, OptionsError, "--images: .*equal to 1, got 0"),
        ({"layers": ["body.0"]}, OptionsError, "PATTERN=KIND"),
        ({"layers": ["body.0=int4"]}, OptionsError, "--layers.body.0: .*int4"),
        ({"layers": ["tail=float"]}, OptionsError, "'tail' matches no module"),
        ({"activations": "float"}, OptionsError, "every layer is float"),
        ({"validation": ["a", "b", "c"]}, OptionsError, "--validation a b c"),
        ({"scale": 3}, OptionsError, "--scale 3"),
        ({"param_key": "params_ema"}, CheckpointError, "no weights 'params_ema'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(files, tmp_path, changed, error, message):
    given = {
        key: value.format(files=files, new=tmp_path) if isinstance(value, str) else value
        for key, value in changed.items()
    }
    with pytest.raises(error, match=message) as caught:
        main(command(files, given.pop("output", tmp_path / "x.pth"), **given))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_quantised_network_is_not_quantised_again(files, tmp_path):
    first = tmp_path / "first.pth"
    main([*command(files, first, validation=None)])
    with pytest.raises(OptionsError, match="quantised already"):
        main(command(files, tmp_path / "second.pth", model=first))


def test_one_layer_alone_is_quantised_at_a_time(files, tmp_path):
    """The figure is how many layers quantise; the network is left as it was."""
    output = tmp_path / "x.pth"
    main(command(files, output, validation=None))
    network = load_pretrained(output).network
    layers = [module for module in network.modules() if hasattr(module, "quantizes")]
    found = sensitivity(network, lambda network: -float(sum(layer.quantizes for layer in layers)))
    assert (found.unquantized, found.quantized) == (0, -3) and set(found.alone.values()) == {-1.0}
    assert [lost for _, lost in found.worst(2)] == [1.0, 1.0] and all(layer.quantizes for layer in layers)

"""Agreement with basicsr 1.4.2, whose figures were printed by `python scripts/reference/networks.py --freeze`."""

from __future__ import annotations

import pytest
import torch
from reference import networks as reference

from basicsr.archs import build_network

# name: digest of the state dict's names, shapes and types; mean, root mean square, first, middle, last output.
FROZEN: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "edsr_x2": ("9700ef508a494fc4", (0.5700337, 1.935237, 0.7888055, 0.663716, 0.2969962)),
    "edsr_x3": ("528aaf9045777ad6", (0.397243, 3.096229, -0.3518296, 2.761794, 0.4140066)),
    "edsr_x4": ("c0af119155486d5d", (0.4506305, 4.369673, 2.267159, 0.7049398, 1.208561)),
    "rcan_x2": ("08defc19e77b81b4", (0.3167149, 3.623721, 0.7361869, -0.3045242, -0.2638279)),
    "rcan_x4": ("f77db2e42ccd1644", (0.6798877, 11.83031, 3.332427, -0.7566576, 1.293888)),
    "msrresnet_x2": ("959c36645d91204f", (0.5475078, 1.425916, 0.8605744, 0.3881819, -0.6071914)),
    "msrresnet_x3": ("58fceb0d5cb44c6d", (0.8155939, 1.507905, 0.3608359, 0.4976677, 0.05041637)),
    "msrresnet_x4": ("835b212750e09f70", (0.675194, 1.693655, 0.614651, 0.2116566, 0.02435949)),
    "swinir_pixelshuffle": ("2aafa7fe5d5bf2b5", (0.7602648, 3.86995, 0.8976568, 0.4436815, 0.9799737)),
    "swinir_other_size": ("df78edcdb6441e1a", (0.7788882, 3.047115, 0.337926, 0.4436875, 0.9825839)),
    "swinir_one_row_of_windows": ("53d3016b14968c62", (0.3121123, 2.304553, 0.108698, -0.2080719, 0.4069983)),
    "swinir_pixelshuffledirect": ("bda30df4f3a32e68", (0.2617381, 2.606337, 1.595811, 1.197508, 1.374328)),
    "swinir_nearest_conv": ("5fd20c43fa256150", (1.133589, 1.693396, 0.4667879, -0.08496562, -0.1783857)),
    "swinir_no_upsampler": ("925faf9688b28818", (0.565143, 0.7204763, 0.5109199, 0.386198, -0.09742197)),
    "swinir_window_as_image": ("96d01d312921139b", (0.7524931, 2.523704, 0.6221797, -0.5985237, 0.7235192)),
    "swinir_patch_size": ("50a4136fe0f1384b", (-0.1661924, 2.89329, 0.4020662, 0.5210289, 0.2346647)),
    "vgg_128": ("a9c679a8514654c5", (0.4886746, 0.52901, 0.2860696, 0.6912795, 0.6912795)),
    "vgg_256": ("424327f7ae9aada8", (1.179614, 1.191793, 1.349557, 1.009671, 1.009671)),
    "unet": ("6356e2e335fffae7", (0.2216843, 0.3261527, 0.09043052, 0.1068148, 0.01150812)),
    "unet_no_skips": ("6356e2e335fffae7", (0.1913611, 0.1913635, 0.1913583, 0.1912479, 0.1911629)),
    "edsr_teacher": ("ca4a27446039c9d0", None),
    "rcan_teacher": ("1c14e8591122d226", None),
    "swinir_teacher": ("e25526e97e99178c", None),
    "swinir_real_world": ("67510295390a463e", None),
    "msrresnet": ("68becae617fab730", None),
    "unet_discriminator": ("a66aadd5d9a40d44", None),
    "vgg_discriminator": ("d1354f40e1dba6c1", None),
}


def test_every_case_is_frozen() -> None:
    assert set(FROZEN) == {*reference.CASES, *reference.PUBLISHED}


@pytest.mark.parametrize("name", FROZEN)
def test_state_dict_has_the_reference_names_shapes_and_types(name: str) -> None:
    _, class_name, arguments, *_ = {**reference.CASES, **reference.PUBLISHED}[name]
    with torch.device("meta"):
        network = build_network({"type": class_name, **arguments})
    assert reference.state_dict_digest(network) == FROZEN[name][0]


@pytest.mark.parametrize("name", [name for name, (_, figures) in FROZEN.items() if figures])
def test_output_is_that_of_the_reference(name: str) -> None:
    _, class_name, arguments, size = reference.CASES[name]
    network = reference.fill_by_formula(build_network({"type": class_name, **arguments})).eval()
    with torch.no_grad():
        output = network(reference.formula_image(*size))
    assert reference.statistics(output) == pytest.approx(FROZEN[name][1], rel=1e-5, abs=1e-5)

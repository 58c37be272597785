#!/usr/bin/env bash
# basicsr 1.4.2: DiffJPEG, the JPEG of Real-ESRGAN's degradations, divides luma by the standard's quantisation table
# transposed: horizontal frequencies get the steps of vertical ones. At quality 50 a wave of 5 half periods to 8 pixels and
# amplitude 39 comes back from libjpeg (Pillow 12.3.0) with 42 across the image and 37 down it, from DiffJPEG with 37.5
# across and 41.6 down. Networks trained with it learn JPEG's artefacts turned by 90 degrees; turns of the training
# patches hide that, but figures on one degradation do not.
# A way around: transpose the table (basicsr.utils.diffjpeg.y_table) before the class is made.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pillow==12.3.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check setuptools==80.9.0 wheel==0.45.1 cython==3.1.4
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation basicsr==1.4.2
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import io
import sys
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

# The file alone: the package imports a module that torchvision no longer has.
file = next(f"{folder}/basicsr/utils/diffjpeg.py" for folder in sys.path if folder.endswith("site-packages"))
spec = importlib.util.spec_from_file_location("diffjpeg", file)
diffjpeg = importlib.util.module_from_spec(spec)
spec.loader.exec_module(diffjpeg)


def wave(across: bool) -> np.ndarray:
    period = 40 * np.cos((2 * np.arange(32) + 1) * 5 * np.pi / 16)
    image = np.tile(128 + period, (32, 1)).round().astype(np.uint8)
    return np.repeat((image if across else image.T)[..., None], 3, 2)


def by_basicsr(image: np.ndarray) -> float:
    tensor = torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        result = diffjpeg.DiffJPEG(differentiable=False)(tensor, quality=50)
    return float(result.max()) * 255 - 128


def by_libjpeg(image: np.ndarray) -> float:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=50, subsampling=2)
    return float(np.asarray(Image.open(io.BytesIO(stream.getvalue()))).max()) - 128


print("basicsr", version("basicsr"), "| Pillow", version("pillow"), "| torch", version("torch"))
found = {}
for name, image in (("across", wave(True)), ("down", wave(False))):
    found[name] = by_basicsr(image), by_libjpeg(image)
    print(f"wave {name}: amplitude {image.max() - 128}, by DiffJPEG {found[name][0]:.1f}, by libjpeg {found[name][1]:.1f}")
swapped = abs(found["across"][0] - found["down"][1]) < 1 and abs(found["down"][0] - found["across"][1]) < 1
differ = abs(found["across"][1] - found["down"][1]) > 3
print("DiffJPEG treats each as libjpeg treats the other:", swapped and differ)
sys.exit(not (swapped and differ))
PYTHON

#!/usr/bin/env bash
# OpenCV 5.0.0.93 (opencv-python-headless): an 8-bit RGBA TIFF with unassociated alpha (ExtraSamples 2, the kind whose
# colours are stored as they are) is read with its colours multiplied by alpha, by IMREAD_COLOR and IMREAD_UNCHANGED
# alike; the same picture of 16 bits, or as PNG, is not. Pillow and tifffile give the stored colours. Training images
# with transparency come out dark, without a word.
# A way around: read TIFF with tifffile.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 tifffile==2026.3.3 pillow==13.0.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import cv2
import numpy as np
import tifffile
from PIL import Image

print("OpenCV", cv2.__version__)
apart = {}
for dtype in (np.uint8, np.uint16):
    full = np.iinfo(dtype).max
    pixels = np.empty((8, 8, 4), dtype)
    pixels[..., :3], pixels[..., 3] = full // 2, full // 4  # gray of half intensity, a quarter opaque
    tifffile.imwrite("a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    for flag in ("IMREAD_COLOR", "IMREAD_UNCHANGED"):
        read = cv2.imread("a.tif", getattr(cv2, flag) | (cv2.IMREAD_ANYDEPTH if flag == "IMREAD_COLOR" else 0))
        apart[dtype.__name__, flag] = int(read[0, 0, 0])
        print(f"{dtype.__name__} {flag}: {read[0, 0, 0]}, stored {full // 2}")
    if dtype is np.uint8:
        print("Pillow:", np.asarray(Image.open("a.tif"))[0, 0].tolist())
sys.exit(not (apart["uint8", "IMREAD_COLOR"] != 127 and apart["uint16", "IMREAD_COLOR"] == 32767))
PYTHON

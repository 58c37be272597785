#!/usr/bin/env bash
# OpenCV 5.0.0 (opencv-python-headless 5.0.0.93): cv2.transpose, and with it cv2.rotate by 90 degrees, go by the bytes of a
# pixel, not by its channels, and know 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32 of them. So images of 5 or 7 channels raise an
# assertion, of uint8, uint16 and float32, while those of 6 and 8 work, and flip and copyMakeBorder take all. Augmentation
# by turns thus fails for some numbers of spectral bands only.
# A way around: numpy's swapaxes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)
takes = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}
as_stated = True
for kind in (np.uint8, np.uint16, np.float32):
    failing = {"transpose": [], "rotate": [], "flip": [], "copyMakeBorder": []}
    for channels in range(1, 9):
        image = np.zeros((5, 7, channels), kind)
        calls = {
            "transpose": lambda: cv2.transpose(image),
            "rotate": lambda: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
            "flip": lambda: cv2.flip(image, 1),
            "copyMakeBorder": lambda: cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REFLECT),
        }
        for name, call in calls.items():
            try:
                call()
            except cv2.error:
                failing[name].append(channels)
    expected = [channels for channels in range(1, 9) if channels * np.dtype(kind).itemsize not in takes]
    print(np.dtype(kind), "fails with channels:", failing)
    as_stated &= failing == {"transpose": expected, "rotate": expected, "flip": [], "copyMakeBorder": []}
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env bash
# imagecodecs 2026.3.6 (CharLS 2.4.3): jpegls_encode, which is lossless, fails on images that do not compress. Random
# uint8 pixels of 256x256x3 raise JpeglsError: "The destination buffer is too small to hold all the output", as the
# buffer it makes for itself is little larger than the image; 16x16x3 still fit. Whoever writes noisy images or
# residuals of networks as JPEG-LS loses some of them to an exception.
# A way around: give a larger buffer, jpegls_encode(image, out=bytearray(2 * image.nbytes)).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check imagecodecs==2026.3.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import imagecodecs
import numpy as np

print("imagecodecs", imagecodecs.__version__, imagecodecs.jpegls_version())
small, large = (np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in ((16, 16), (256, 256)))
print("16x16x3 noise:", small.nbytes, "->", len(imagecodecs.jpegls_encode(small)), "bytes")
try:
    print("256x256x3 noise:", large.nbytes, "->", len(imagecodecs.jpegls_encode(large)), "bytes")
    failed = False
except imagecodecs.JpeglsError as error:
    print("256x256x3 noise:", error)
    failed = True
given = imagecodecs.jpegls_encode(large, out=bytearray(2 * large.nbytes))
same = np.array_equal(imagecodecs.jpegls_decode(given), large)
print("the same into a larger buffer:", len(given), "bytes, read back equal:", same)
sys.exit(not (failed and same))
PYTHON

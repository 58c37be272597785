#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg's swscale): full white of a 10-bit video in limited range, code 940, becomes 65283 of 65535 when a frame
# is converted to rgb48, so not white: values are widened by a shift, as if full scale were 255 * 256. Whoever divides
# by 65535 gets 0.9962, and video frames for a network or for PSNR are darker than the same frames as 16-bit PNG files.
# Frames of 8 bits converted to rgb24 give 255.
# A way around: convert the planes by the matrix of the standard in floating point.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np

print("PyAV", av.__version__, "| swscale", ".".join(map(str, av.library_versions["libswscale"])))
white = {}
for depth, pixel_format, target in ((8, "yuv444p", "rgb24"), (10, "yuv444p10le", "rgb48le")):
    frame = av.VideoFrame(64, 64, pixel_format)
    kind = np.uint8 if depth == 8 else np.uint16
    for plane, code in zip(frame.planes, (235, 128, 128), strict=True):
        values = np.full((64, plane.line_size // np.dtype(kind).itemsize), code << (depth - 8), kind)
        plane.update(values.tobytes())
    rgb = frame.reformat(format=target, src_colorspace="ITU709", src_color_range="MPEG", dst_color_range="JPEG")
    white[depth] = rgb.to_ndarray()[32, 32].tolist()
    print(f"white of {depth} bits as {target}:", white[depth], f"= {white[depth][0] / (255 if depth == 8 else 65535):.4f}")
sys.exit(not (min(white[8]) == 255 and max(white[10]) < 65400))
PYTHON

"""Images whose figures are known beforehand."""

from __future__ import annotations

import torch

PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}


class Pairs:
    """Images whose output differs from GT by `index` levels everywhere: PSNR = 20 log10(255 / index)."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        lq = torch.full((3, 4, 4), 100 / 255)
        return {"lq": lq, "gt": torch.full((3, 4, 4), (101 + index) / 255), "lq_path": f"/data/image{index}.png"}

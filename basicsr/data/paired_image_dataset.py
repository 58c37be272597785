"""HR images and the LR images made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from basicsr.config.component_blocks import ON_DISK, StorageBlock
from basicsr.data.base import Color, PatchDataset, TensorConversion, rgb_tensor, taking_opt
from basicsr.data.storage import OpenImage, StoredImages, Window, roots_of
from basicsr.data.teacher_outputs import decode, open_output
from basicsr.data.transforms import Size, check_depths, check_whole_pair, choose_crop, draw_coins, turned
from basicsr.files.images import img2tensor
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Colour, Deviation, Scale, Side
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class PairedImageDataset(PatchDataset):
    """Pairs of HR and LR images, or LR images alone, from folders, a list, or LMDB databases.

    In training a sample is a random patch, flipped and rotated at random; otherwise the whole pair, the HR
    image being cut below and right to `scale` times the LR image, as benchmarks need it, by less than 12 pixels.

    Args:
        dataroot_gt: folder or LMDB database of the HR images; None where there are LR images alone, of which only the
            teacher's outputs are targets.
        dataroot_lq: of the LR images.
        scale: upscaling factor.
        phase: 'train', or 'val' and 'test', which are the same here.
        io_backend: {type: disk} or {type: lmdb}.
        filename_tmpl: name of an LR image without ending, from that of its HR image, such as '{}x2'.
        meta_info_file: file that lists the HR images to use, relative to `dataroot_gt`, or the LR images where they
            are alone; None for the whole folder.
        gt_size: side of the HR patches in training, a multiple of `scale`; of the largest where they grow. LR patches
            are a `scale`-th of it, also where they are alone.
        use_hflip: flip half of the patches in training.
        use_vflip: turn half of the patches upside down in training; `use_rot` does that too.
        use_rot: rotate patches by multiples of 90 degrees in training.
        extend_small: in training, extend images smaller than the patch by reflection, below and right; otherwise they
            are refused.
        color: 'gray' or 'y' for one channel (`TensorConversion`), None for RGB.
        mean: subtracted from each channel of both images.
        std: divides each channel of both images then.
        teacher_cache: folder of a teacher's outputs for the images, as scripts/cache_teacher.py makes it; in
            training samples then have `sr_teacher`, cut and turned as `gt` is.

    Raises:
        DataError: folders are missing or empty, or images have no partner.
        OptionsError: `gt_size` is missing in training or no multiple of `scale`, or options contradict each
            other.
    """

    @staticmethod
    def without_gt(options: Mapping[str, Any]) -> bool:
        """Whether there are LR images alone."""
        return options.get("dataroot_gt") is None

    @taking_opt
    def __init__(
        self,
        *,
        dataroot_gt: str | None = None,
        dataroot_lq: str,
        scale: Scale,
        phase: Literal["train", "val", "test"] = "train",
        io_backend: StorageBlock = ON_DISK,
        filename_tmpl: str = "{}",
        meta_info_file: str | None = None,
        gt_size: Side | None = None,
        use_hflip: bool = True,
        use_vflip: bool = False,
        use_rot: bool = True,
        extend_small: bool = False,
        color: Color | None = None,
        mean: Sequence[Colour] | None = None,
        std: Sequence[Deviation] | None = None,
        teacher_cache: str | None = None,
    ) -> None:
        if phase != "train":
            gt_size = None
        elif gt_size is None or gt_size < scale or gt_size % scale != 0:
            raise OptionsError(
                f"gt_size must be a multiple of the scale {scale} in training, got {gt_size}; try {48 * scale}"
            )
        self.scale, self.gt_size, self.extend_small = scale, gt_size, extend_small
        self.use_hflip, self.use_vflip, self.use_rot = use_hflip, use_vflip, use_rot
        self._convert = TensorConversion(color, mean, std)
        folders = {"lq": dataroot_lq, "gt": dataroot_gt}
        self._roots = roots_of(io_backend, {role: path for role, path in folders.items() if path is not None})
        self._roles: list[str] = [role for role in ("gt", "lq") if role in self._roots]  # the first names the images
        self._teacher_cache = teacher_cache
        if teacher_cache is not None and (phase != "train" or (color, mean, std) != (None, None, None)):
            raise OptionsError("teacher_cache is for training on RGB in [0, 1]: without color, mean and std")
        self._named = self._roots[self._roles[0]]
        self._chosen = meta_info_file is not None and self._named.takes_list
        if dataroot_gt is None:
            self.paths = [{"lq_path": name} for name in self._named.names(meta_info_file)]
        else:
            self.paths = self._named.pairs(dataroot_lq, filename_tmpl, meta_info_file)

    def __len__(self) -> int:
        return len(self.paths)

    def load(
        self, index: int, rng: np.random.Generator, gt_size: int | None = None, *, pixels: bool = False
    ) -> dict[str, Any]:
        """Returns {'lq': float32 (C, h, w), 'gt': float32 (C, sh, sw), 'lq_path': str, 'gt_path': str}, RGB
        in [0, 1], without 'gt' and 'gt_path' where LR images are alone; with a teacher's cache also 'sr_teacher',
        float32 (C, sh, sw).

        With `pixels`, 8-bit images that only need scaling are uint8, and 'sr_teacher' is uint16, the cache's codes.
        Raises DataError: an image cannot be read, is smaller than the patch, or the two do not fit in size or bits.
        """
        paths, scale = self.paths[index], self.scale
        names = {role: paths[f"{role}_path"] for role in self._roles}
        images = {role: self._roots[role].open(name) for role, name in names.items()}
        labels = {role: self._roots[role].label(name) for role, name in names.items()}
        lq, gt = images["lq"], images.get("gt")
        if gt is not None:
            check_depths(gt.depth, lq.depth, labels["gt"], labels["lq"])
        if self.gt_size is None:
            sample = {"lq": self._convert(lq.read(), pixels)}
            if gt is not None:
                check_whole_pair(gt.size, lq.size, scale, labels["gt"], labels["lq"])
                whole = Window(0, 0, lq.size[0] * scale, lq.size[1] * scale)
                sample["gt"] = self._convert(gt.read(whole), pixels)
            return {**sample, **paths}
        side = gt_size or self.gt_size
        output_size = lq.size[0] * scale, lq.size[1] * scale
        sizes = None if gt is None else gt.size, lq.size
        if self.extend_small and sizes[0] in (None, output_size):
            sizes = sizes[0] and _at_least(output_size, side), _at_least(lq.size, side // scale)
        top, left = choose_crop(*sizes, side, scale, labels.get("gt"), labels["lq"], rng)
        windows = {"lq": Window(top, left, side // scale, side // scale)}
        windows["gt"] = windows["sr_teacher"] = Window(top * scale, left * scale, side, side)
        if self._teacher_cache is not None:
            name = self._named.key(names[self._roles[0]])
            images["sr_teacher"] = open_output(self._teacher_cache, name, output_size)
        patches = {name: _extended(image, windows[name]) for name, image in images.items()}
        coins = draw_coins(self.use_hflip, self.use_rot, rng)
        if self.use_vflip and not self.use_rot:
            coins = coins._replace(vertical=rng.random() < 0.5)
        patches = {name: turned(patch, coins) for name, patch in patches.items()}
        sample = {role: self._convert(patches[role], pixels) for role in self._roles}
        if "sr_teacher" in patches:
            output = patches["sr_teacher"]
            sample["sr_teacher"] = rgb_tensor(output) if pixels else decode(img2tensor(output))
        return {**sample, **paths}

    def stored_images(self) -> StoredImages:
        """Where the images lie and what they must be like."""
        return StoredImages(
            files={role: [paths[f"{role}_path"] for paths in self.paths] for role in self._roles},
            roots=self._roots,
            scale=self.scale,
            exact=self.gt_size is not None,
            gt_patch_size=None if self.extend_small else self.gt_size,
            chosen=self._chosen,
        )


def _at_least(size: Size, side: int) -> Size:
    return max(size[0], side), max(size[1], side)


def _extended(image: OpenImage, window: Window) -> np.ndarray:
    """A window's pixels; where the image ends, reflected below and right with the edge, which suits HR and LR alike."""
    img = image.read(window)
    missing = [(0, side - length) for side, length in zip(window[2:], img.shape[:2], strict=True)]
    return np.pad(img, (*missing, (0, 0)), "symmetric") if any(end for _, end in missing) else img

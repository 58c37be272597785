"""HR images and the LR images made from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from basicsr.config.component_blocks import ON_DISK, DegradationBlocks, ImageFolders, ImageLists, StorageBlock
from basicsr.data.base import Color, PatchDataset, TensorConversion, gray_values, rgb_tensor, taking_opt
from basicsr.data.degradations.base import Chain, cache_fault, fault_of, resolved
from basicsr.data.degradations.unfinished import Unfinished
from basicsr.data.image_sets import find_images
from basicsr.data.storage import DecodedImage, OpenImage, StoredImages, Window
from basicsr.data.teacher_outputs import decode, open_output
from basicsr.data.transforms import (
    Coins,
    Size,
    check_depths,
    check_hr_patch_fits,
    check_whole_pair,
    choose_crop,
    draw_coins,
    turned,
)
from basicsr.files.images import img2tensor
from basicsr.utils.errors import OptionsError
from basicsr.utils.randomness import generator, seed_of_text
from basicsr.utils.ranges import Colour, Deviation, Scale, Side
from basicsr.utils.registry import DATASET_REGISTRY

_BICUBIC = {"type": "MatlabBicubic"}


@DATASET_REGISTRY.register()
class PairedImageDataset(PatchDataset):
    """Pairs of HR and LR images, HR images of which LR is made, or LR images alone: folders, lists, LMDB databases.

    In training a sample is a random patch, flipped and rotated at random; otherwise the whole pair, the HR
    image being cut below and right to `scale` times the LR image, as benchmarks need it, by less than 12 pixels.

    An LR patch that is made is what the LR image of the whole HR image, cut to a multiple of `scale`, has at its place:
    HR pixels around the patch enter it, and beyond the image's edges these are mirrored. What is random follows in
    training from the sample's seed, otherwise from the image's name, so that figures repeat.

    Args:
        dataroot_gt: the HR images: a folder, which is read with those below; a pattern such as `sets/*/HR`; an LMDB
            database; {path: one of these, weight: how often training takes its images in a pass}; or a list of such
            entries. None where there are LR images alone, of which only the teacher's outputs are targets.
        dataroot_lq: the LR images likewise; None where they are made of the HR images. Lists pair up entry by entry,
            images by their names relative to their folders.
        scale: upscaling factor.
        phase: 'train', or 'val' and 'test', which are the same here.
        io_backend: {type: disk}, {type: lmdb}, {type: webdataset}, or {type: bands, channels: N} for images of N bands.
        filename_tmpl: name of an LR image without ending, from that of its HR image, such as '{}x2'.
        meta_info_file: file that lists the HR images to use, relative to `dataroot_gt`, or the LR images where they
            are alone; None for the whole folder. A list has an entry for each folder.
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
            training samples then have `sr_teacher`, cut and turned as `gt` is. Where LR images are made, by steps
            without random choices only.
        degradation: how LR images are made where there is no `dataroot_lq`: a step, or a list of steps in their
            order; MATLAB's bicubic if left out. With color gray, HR images are made gray before.

    Raises:
        DataError: folders are missing or empty, or images have no partner.
        OptionsError: `gt_size` is missing in training or no multiple of `scale`, or options contradict each
            other.
    """

    @staticmethod
    def without_gt(options: Mapping[str, Any]) -> bool:
        """Whether there are LR images alone."""
        return options.get("dataroot_gt") is None and options.get("dataroot_lq") is not None

    @taking_opt
    def __init__(
        self,
        *,
        dataroot_gt: ImageFolders | None = None,
        dataroot_lq: ImageFolders | None = None,
        scale: Scale,
        phase: Literal["train", "val", "test"] = "train",
        io_backend: StorageBlock = ON_DISK,
        filename_tmpl: str = "{}",
        meta_info_file: ImageLists | None = None,
        gt_size: Side | None = None,
        use_hflip: bool = True,
        use_vflip: bool = False,
        use_rot: bool = True,
        extend_small: bool = False,
        color: Color | None = None,
        mean: Sequence[Colour] | None = None,
        std: Sequence[Deviation] | None = None,
        teacher_cache: str | None = None,
        degradation: DegradationBlocks | None = None,
    ) -> None:
        if phase != "train":
            gt_size = None
        elif gt_size is None or gt_size < scale or gt_size % scale != 0:
            raise OptionsError(
                f"gt_size must be a multiple of the scale {scale} in training, got {gt_size}; try {48 * scale}"
            )
        self.scale, self.gt_size, self.extend_small = scale, gt_size, extend_small
        self.use_hflip, self.use_vflip, self.use_rot = use_hflip, use_vflip, use_rot
        folders = {"lq": dataroot_lq, "gt": dataroot_gt}
        self._roles: list[str] = [role for role in ("gt", "lq") if folders[role] is not None]  # the first names images
        self._teacher_cache = teacher_cache
        for key, message in PairedImageDataset.conflicts(dataroot_gt, dataroot_lq, degradation, scale, teacher_cache):
            raise OptionsError(f"{key}: {message}")
        self._images = find_images(
            io_backend,
            {role: value for role, value in folders.items() if value is not None},
            filename_tmpl=filename_tmpl,
            meta_info_file=meta_info_file,
            weighted=phase == "train",
        )
        self._roots, self.paths = self._images.roots, self._images.paths
        channels = self._roots[self._roles[0]].channels
        self._convert = TensorConversion(color, mean, std, channels)
        if teacher_cache is not None and (phase != "train" or (color, mean, std, channels) != (None, None, None, 3)):
            raise OptionsError("teacher_cache is for training on RGB in [0, 1]: without color, mean, std and bands")
        self._named = self._roots[self._roles[0]]
        self._gray, self._degrade = color == "gray", None
        self.makes_lr_later = False
        """Whether training makes LR images on its device, after a batch was handed over."""
        if dataroot_lq is None:
            self.degradation = degradation or _BICUBIC
            self._degrade = Chain(self.degradation, scale)
            self._degrade.check_channels(channels)
            if phase == "train" and self._degrade.device == "training" and not self._convert.only_scales:
                raise OptionsError(
                    "degradation device: training makes LR images last of all, so color: y, mean and std cannot change"
                    " them; take device: cpu"
                )
            self.paths = [{"lq_path": paths["gt_path"], **paths} for paths in self.paths]

    @staticmethod
    def conflicts(
        dataroot_gt: ImageFolders | None,
        dataroot_lq: ImageFolders | None,
        degradation: DegradationBlocks | None,
        scale: int,
        teacher_cache: str | None,
    ) -> Iterator[tuple[str, str]]:
        """See `find_problems`."""
        if dataroot_lq is not None:
            if degradation is not None:
                yield "degradation", "makes LR images, and dataroot_lq has them; remove one of the two"
            return
        if dataroot_gt is None:
            yield "dataroot_gt", "is required, or dataroot_lq: HR images, LR images, or both"
        elif scale == 1 and degradation is None:
            yield "dataroot_lq", "is required at scale 1, or a degradation such as {type: GaussianNoise, sigma: 25}"
        elif degradation is not None:
            steps = [degradation] if isinstance(degradation, Mapping) else list(degradation)
            if fault := fault_of(steps, scale):
                yield "degradation", fault
        if teacher_cache is not None and (fault := cache_fault(degradation or _BICUBIC)):
            yield "teacher_cache", f"{fault}; remove one of the two"

    def __len__(self) -> int:
        return len(self.paths)

    def begin_training(self, on_gpu: bool) -> None:
        """See `ImageDataset`."""
        device = "cpu" if self._degrade is None else self._degrade.device
        final = type(self).load is PairedImageDataset.load  # that of a derived class may change LR images
        if device == "training" and not final:
            raise OptionsError(
                f"degradation device: training makes LR images after {type(self).__name__}.load, which may change them;"
                " take device: cpu"
            )
        chosen = device == "training" or (device == "auto" and on_gpu)
        self.makes_lr_later = chosen and final and self._convert.only_scales

    def load(
        self, index: int, rng: np.random.Generator, gt_size: int | None = None, *, pixels: bool = False
    ) -> dict[str, Any]:
        """Returns {'lq': float32 (C, h, w), 'gt': float32 (C, sh, sw), 'lq_path': str, 'gt_path': str}, RGB
        in [0, 1], without 'gt' and 'gt_path' where LR images are alone; with a teacher's cache also 'sr_teacher',
        float32 (C, sh, sw).

        With `pixels`, 8-bit images that only need scaling are uint8, and 'sr_teacher' is uint16, the cache's codes;
        where `makes_lr_later`, 'lq' is the HR image with a margin, and 'unfinished' what is left to do.
        Raises DataError: an image cannot be read, is smaller than the patch, or the two do not fit in size or bits.
        """
        paths = self.paths[index]
        unfinished: Unfinished | None = None
        if self._degrade is None:
            patches = self._read(paths, rng, gt_size)
        else:
            patches, unfinished = self._made(paths["gt_path"], rng, gt_size, pixels and self.makes_lr_later)
        sample: dict[str, Any] = {
            role: self._convert(patches[role], pixels) for role in ("gt", "lq") if role in patches
        }
        if "sr_teacher" in patches:
            output = patches["sr_teacher"]
            sample["sr_teacher"] = rgb_tensor(output) if pixels else decode(img2tensor(output))
        if unfinished is not None:
            sample["unfinished"] = unfinished
        return {**sample, **paths}

    def _read(self, paths: Mapping[str, str], rng: np.random.Generator, gt_size: int | None) -> dict[str, np.ndarray]:
        """The images of a sample, or patches of them, with the teacher's output if there is a cache."""
        scale = self.scale
        names = {role: paths[f"{role}_path"] for role in self._roles}
        images = {role: self._roots[role].open(name) for role, name in names.items()}
        labels = {role: self._roots[role].label(name) for role, name in names.items()}
        lq, gt = images["lq"], images.get("gt")
        if gt is not None:
            check_depths(gt.depth, lq.depth, labels["gt"], labels["lq"])
        if self.gt_size is None:
            if gt is None:
                return {"lq": lq.read()}
            check_whole_pair(gt.size, lq.size, scale, labels["gt"], labels["lq"])
            return {"lq": lq.read(), "gt": gt.read(Window(0, 0, lq.size[0] * scale, lq.size[1] * scale))}
        side = gt_size or self.gt_size
        output_size = lq.size[0] * scale, lq.size[1] * scale
        sizes = None if gt is None else gt.size, lq.size
        if self.extend_small and sizes[0] in (None, output_size):
            sizes = sizes[0] and _at_least(output_size, side), _at_least(lq.size, side // scale)
        top, left = choose_crop(*sizes, side, scale, labels.get("gt"), labels["lq"], rng)
        windows = {"lq": Window(top, left, side // scale, side // scale)}
        windows["gt"] = windows["sr_teacher"] = Window(top * scale, left * scale, side, side)
        if self._teacher_cache is not None:
            images["sr_teacher"] = self._output(names[self._roles[0]], output_size)
        patches = {name: _mirrored(image, windows[name], image.size) for name, image in images.items()}
        coins = self._draw_coins(rng)
        return {name: turned(patch, coins) for name, patch in patches.items()}

    def _made(
        self, name: str, rng: np.random.Generator, gt_size: int | None, later: bool
    ) -> tuple[dict[str, np.ndarray], Unfinished | None]:
        """An HR image, or a patch of it, and LR made of it, or what it is to be made of `later`."""
        assert self._degrade is not None
        gt, scale, margin = self._named.open(name), self.scale, self._degrade.margin
        size = gt.size[0] // scale * scale, gt.size[1] // scale * scale
        side = scale if self.gt_size is None else gt_size or self.gt_size
        check_hr_patch_fits(size, scale if self.extend_small else side, self._named.label(name))
        if self.gt_size is None:
            window, coins = Window(0, 0, *size), Coins(False, False, False)
            rng = generator(seed_of_text(self._named.key(name)), "degradation")
        else:
            large = _at_least(size, side)
            top, left = choose_crop(large, (large[0] // scale, large[1] // scale), side, scale, rng=rng)
            window, coins = Window(top * scale, left * scale, side, side), self._draw_coins(rng)
        origin = window.top - margin, window.left - margin
        around = _mirrored(gt, Window(*origin, window.height + 2 * margin, window.width + 2 * margin), size)
        if self._gray:
            around = gray_values(around)
        unfinished: Unfinished | None = None
        if later:
            lq, step, drawn = self._degrade.begin(around, origin, rng)
            unfinished = Unfinished(step, drawn, coins)
        else:
            lq = turned(self._degrade(around, origin, rng), coins)
        patches = {"gt": around[margin : margin + window.height, margin : margin + window.width]}
        if self._teacher_cache is not None:
            patches["sr_teacher"] = _mirrored(self._output(name, size), window, size)
        return {"lq": lq, **{role: turned(patch, coins) for role, patch in patches.items()}}, unfinished

    def make_lq(self, gt: np.ndarray) -> np.ndarray:
        """The LR image (h, w, 3), BGR, of a whole HR image (H, W, 3), where steps without random choices make it."""
        assert self._degrade is not None
        scale, margin = self.scale, self._degrade.margin
        size = gt.shape[0] // scale * scale, gt.shape[1] // scale * scale
        window = Window(-margin, -margin, size[0] + 2 * margin, size[1] + 2 * margin)
        return self._degrade(_mirrored(DecodedImage(gt), window, size), window[:2], generator(0, "degradation"))

    def _output(self, name: str, size: Size) -> OpenImage:
        """The teacher's output for an image."""
        assert self._teacher_cache is not None
        return open_output(self._teacher_cache, self._named.key(name), size)

    def _draw_coins(self, rng: np.random.Generator) -> Coins:
        coins = draw_coins(self.use_hflip, self.use_rot, rng)
        return coins._replace(vertical=rng.random() < 0.5) if self.use_vflip and not self.use_rot else coins

    def stored_images(self) -> StoredImages:
        """Where the images lie and what they must be like."""
        return StoredImages(
            files={role: [paths[f"{role}_path"] for paths in self.paths] for role in self._roles},
            roots=self._roots,
            scale=self.scale,
            exact=self.gt_size is not None,
            gt_patch_size=None if self.extend_small else self.gt_size,
            chosen=self._images.chosen,
            shares=self._images.shares,
            degradation=None if self._degrade is None else resolved(self.degradation),
        )


def _at_least(size: Size, side: int) -> Size:
    return max(size[0], side), max(size[1], side)


def _mirrored(image: OpenImage, window: Window, size: Size) -> np.ndarray:
    """A window's pixels; beyond the image's first `size` pixels mirrored with the edge, which suits HR and LR alike."""
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, size[0]), min(window.left + window.width, size[1])
    img = image.read(Window(top, left, bottom - top, right - left))
    above, before = top - window.top, left - window.left
    below, after = window.height - above - (bottom - top), window.width - before - (right - left)
    if not any((above, below, before, after)):
        return img
    if img.strides[2] < 0:  # a view of RGB as BGR
        return cv2.copyMakeBorder(img[..., ::-1], above, below, before, after, cv2.BORDER_REFLECT)[..., ::-1]
    bordered = cv2.copyMakeBorder(img, above, below, before, after, cv2.BORDER_REFLECT)
    return bordered.reshape(window.height, window.width, -1)

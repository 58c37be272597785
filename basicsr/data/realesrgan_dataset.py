"""BasicSR's datasets for Real-ESRGAN, by their options: both are `PairedImageDataset` underneath."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from basicsr.config.component_blocks import ON_DISK, ImageFolders, ImageLists, StorageBlock
from basicsr.data.base import taking_opt
from basicsr.data.degradations.real_esrgan import RealESRGAN
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.ranges import Colour, Deviation, Scale, Side
from basicsr.utils.registry import DATASET_REGISTRY, type_hints


def _with_degradation(init: Callable[..., None]) -> Callable[..., None]:
    """Puts the arguments of `RealESRGAN` into the place of an `__init__`'s `**degradation`."""
    own = inspect.signature(init)
    first = [entry for entry in own.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    added = [entry for name, entry in inspect.signature(RealESRGAN).parameters.items() if name != "scale"]
    init.__signature__ = own.replace(parameters=[*first, *added])  # type: ignore[attr-defined]
    init.__annotations__ = {**type_hints(RealESRGAN), **init.__annotations__}
    return init


@DATASET_REGISTRY.register()
class RealESRGANDataset(PairedImageDataset):
    """HR images, and LR images made of them by Real-ESRGAN's degradations, whose options lie beside these.

    Args:
        dataroot_gt: folder or LMDB database of the HR images.
        scale: upscaling factor.
        phase: 'train', or 'val' and 'test', which are the same here.
        io_backend: {type: disk} or {type: lmdb}.
        meta_info: file that lists the HR images to use, relative to `dataroot_gt`; None for the whole folder.
        gt_size: side of the HR patches in training, a multiple of `scale`.
        use_hflip: flip half of the patches in training.
        use_rot: rotate patches by multiples of 90 degrees in training.
        extend_small: in training, extend images smaller than the patch by reflection, as BasicSR does; false refuses
            them.

    Raises:
        DataError: the folder is missing or empty, or a listed image does not exist.
        OptionsError: `gt_size` is missing in training or no multiple of `scale`, or options contradict each other.
    """

    options_of = RealESRGAN
    conflicts = staticmethod(RealESRGAN.conflicts)  # type: ignore[assignment]

    @taking_opt
    @_with_degradation
    def __init__(
        self,
        *,
        dataroot_gt: ImageFolders,
        scale: Scale,
        phase: Literal["train", "val", "test"] = "train",
        io_backend: StorageBlock = ON_DISK,
        meta_info: ImageLists | None = None,
        gt_size: Side | None = None,
        use_hflip: bool = True,
        use_rot: bool = True,
        extend_small: bool = True,
        **degradation: Any,
    ) -> None:
        super().__init__(
            dataroot_gt=dataroot_gt,
            scale=scale,
            phase=phase,
            io_backend=io_backend,
            meta_info_file=meta_info,
            gt_size=gt_size,
            use_hflip=use_hflip,
            use_rot=use_rot,
            extend_small=extend_small,
            degradation={"type": "RealESRGAN", **degradation},
        )


@DATASET_REGISTRY.register()
class RealESRGANPairedDataset(PairedImageDataset):
    """Pairs of HR and LR images, as for fine-tuning Real-ESRGAN: `PairedImageDataset` by BasicSR's options.

    Args:
        dataroot_gt: folder or LMDB database of the HR images.
        dataroot_lq: of the LR images.
        scale: upscaling factor.
        phase: 'train', or 'val' and 'test', which are the same here.
        io_backend: {type: disk} or {type: lmdb}.
        meta_info: file that lists pairs, `HR, LR` to a line, relative to the two folders; None for the whole folder.
        filename_tmpl: name of an LR image without ending, from that of its HR image, such as '{}x2'.
        gt_size: side of the HR patches in training, a multiple of `scale`.
        use_hflip: flip half of the patches in training.
        use_rot: rotate patches by multiples of 90 degrees in training.
        mean: subtracted from each channel of both images.
        std: divides each channel of both images then.

    Raises:
        DataError: folders are missing or empty, or images have no partner.
        OptionsError: `gt_size` is missing in training or no multiple of `scale`, or options contradict each other.
    """

    @taking_opt
    def __init__(
        self,
        *,
        dataroot_gt: ImageFolders,
        dataroot_lq: ImageFolders,
        scale: Scale,
        phase: Literal["train", "val", "test"] = "train",
        io_backend: StorageBlock = ON_DISK,
        meta_info: ImageLists | None = None,
        filename_tmpl: str = "{}",
        gt_size: Side | None = None,
        use_hflip: bool = True,
        use_rot: bool = True,
        mean: Sequence[Colour] | None = None,
        std: Sequence[Deviation] | None = None,
    ) -> None:
        super().__init__(
            dataroot_gt=dataroot_gt,
            dataroot_lq=dataroot_lq,
            scale=scale,
            phase=phase,
            io_backend=io_backend,
            filename_tmpl=filename_tmpl,
            meta_info_file=meta_info,
            gt_size=gt_size,
            use_hflip=use_hflip,
            use_rot=use_rot,
            mean=mean,
            std=std,
        )

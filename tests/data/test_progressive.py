"""Patches and batches that change in the course of training: which samples come when, how large, and after a resume."""

from __future__ import annotations

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from basicsr.config.load import load_options
from basicsr.data import build_dataset, build_train_loader
from basicsr.data.base import ImageDataset, SampleKey, load_sample
from basicsr.data.sampling import KeySampler, Stage
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.randomness import generator, sample_seed
from basicsr.utils.registry import Registry

STAGES = (Stage(3, 4, 8), Stage(2, 3, 12), Stage(4, 1, 16))
SIZES = [8] * 3 + [12] * 2 + [16] * 4


def sampler(**changes: Any) -> KeySampler:
    settings = {"num_samples": 7, "batch_size": STAGES, "seed": 3, "total_iterations": 9, **changes}
    return KeySampler(**settings)


class TestSamples:
    @pytest.mark.parametrize("world_size", [1, 2])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_a_resumed_run_continues_the_same_sequence(self, world_size, accumulate):
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size, "accumulate": accumulate}
            whole = list(sampler(**place))
            assert len(whole) == len(sampler(**place)) == 9 * accumulate
            for start in range(10):
                resumed = sampler(**place, start_iteration=start)
                assert list(resumed) == whole[start * accumulate :]
                assert len(resumed) == len(whole) - start * accumulate

    @pytest.mark.parametrize("world_size", [1, 2])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_positions_count_on_without_gap_over_ranks_batches_and_stages(self, world_size, accumulate):
        ranks = [list(sampler(rank=rank, world_size=world_size, accumulate=accumulate)) for rank in range(world_size)]
        keys = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch]
        assert [key.seed for key in keys] == [sample_seed(3, position) for position in range(len(keys))]
        passes = [sorted(key.index for key in keys[start : start + 7]) for start in range(0, len(keys) - 6, 7)]
        assert all(indices == list(range(7)) for indices in passes)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_every_batch_has_its_stages_size_and_patch(self, accumulate):
        batches = list(sampler(accumulate=accumulate))
        sizes = [size for size in SIZES for _ in range(accumulate)]
        assert [{key.gt_size for key in batch} for batch in batches] == [{size} for size in sizes]
        assert [len(batch) for batch in batches] == [{8: 4, 12: 3, 16: 1}[size] for size in sizes]

    def test_one_stage_is_a_run_as_usual_but_for_the_patch(self):
        usual = [key for batch in sampler(batch_size=4) for key in batch]
        staged = [key for batch in sampler(batch_size=[Stage(9, 4, 8)]) for key in batch]
        assert [SampleKey(key.index, key.seed) for key in staged] == usual
        assert {key.gt_size for key in usual} == {None}

    def test_the_last_stage_lasts_as_long_as_the_run(self):
        assert [len(batch) for batch in sampler(total_iterations=12)][-4:] == [1, 1, 1, 1]


def test_samples_and_iterations_are_counted_as_by_a_loop():
    stages = sampler(world_size=2)
    taken = np.cumsum([0] + [2 * {8: 4, 12: 3, 16: 1}[size] for size in SIZES])
    assert [stages.samples_before(iteration) for iteration in range(10)] == taken.tolist()
    for samples in range(taken[-1] + 1):
        assert stages.iterations_for(samples) == int(np.argmax(taken >= samples))


@pytest.fixture
def entry(image_pairs) -> dict[str, Any]:
    """The dataset's entry in the options: seven pairs of 24x24 at scale 1."""
    gt, lq = image_pairs(scale=1, count=7, size=24)
    return {
        "name": "grows",
        "type": "PairedImageDataset",
        "dataroot_gt": str(gt),
        "dataroot_lq": str(lq),
        "filename_tmpl": "{}x1",
        "io_backend": {"type": "disk"},
        "gt_size": 16,
        "batch_size_per_gpu": 4,
        "gt_sizes": [8, 12, 16],
        "mini_batch_sizes": [4, 3, 1],
        "iters": [3, 2, 4],
    }


def whole(entry: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {
        "name": "progressive",
        "scale": 1,
        "num_gpu": 0,
        "datasets": {"train": entry},
        "network_g": {"type": "NAFNet", "width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1]},
        "train": {"total_iter": 9, "optim_g": {"type": "Adam"}, "pixel_opt": {"type": "L1Loss"}, **train},
    }


def loader(entry: dict[str, Any], **changes: Any):
    options = load_options(whole(entry), training=True, paths=False).datasets["train"]
    place = {"seed": 5, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 9}
    return build_train_loader(options, **{**place, "accumulate": 1, "on_gpu": False, **changes})


class TestBatches:
    def test_have_the_stages_sizes_and_the_same_place_of_both_images(self, entry):
        batches = [batch for (batch,) in loader(entry)]
        assert [tuple(batch.gt.shape) for batch in batches] == [
            ({8: 4, 12: 3, 16: 1}[size], 3, size, size) for size in SIZES
        ]
        assert all(torch.equal(batch.lq, batch.gt) for batch in batches)  # at scale 1 the fixture's pairs are equal

    @pytest.mark.parametrize("start", [2, 3, 6])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_the_same_after_a_resume_and_with_workers(self, entry, start, workers):
        resumed = loader({**entry, "num_worker_per_gpu": workers}, start_iteration=start)
        pairs = list(zip(resumed, list(loader(entry))[start:], strict=True))
        assert len(pairs) == 9 - start
        assert all(torch.equal(one.gt, other.gt) for ((one,), (other,)) in pairs)

    def test_without_growing_depend_on_nothing_new(self, entry):
        plain = {key: value for key, value in entry.items() if key not in ("gt_sizes", "mini_batch_sizes", "iters")}
        staged = {**entry, "gt_sizes": [16], "mini_batch_sizes": [4], "iters": [9]}
        pairs = zip(loader(plain), loader(staged), strict=True)
        assert all(torch.equal(one.gt, other.gt) for ((one,), (other,)) in pairs)


class TestEpochs:
    def test_are_complete_when_their_samples_were_taken(self, entry):
        run = loader({**entry, "dataset_enlarge_ratio": 2})
        taken = [0, 4, 8, 12, 15, 18, 19, 20, 21, 22]
        places = [run.epoch_at(iteration) for iteration in range(10)]
        assert [epoch for epoch, _, _ in places] == [samples // 14 for samples in taken]
        assert places[4] == (1, 0, 11)  # 14 samples were taken after 4 iterations, 28 would be after 15
        for one, other in pairwise(places):
            assert other[1] in (one[1] + 1, 0)

    def test_are_equally_long_while_the_batch_stays_as_it_is(self, entry):
        same = {**entry, "mini_batch_sizes": [4, 4, 4]}
        run = loader(same, total_iterations=9)
        assert run.iterations_per_epoch == 2
        assert [run.epoch_at(iteration) for iteration in (0, 1, 5)] == [(0, 0, 2), (0, 1, 2), (2, 1, 2)]


class _Fixed(ImageDataset):
    """One that takes patches of one size, as the documentation's example does."""

    without_gt = True

    def __init__(self, *, gt_size: int = 16) -> None:
        self.gt_size = gt_size

    def __len__(self) -> int:
        return 3

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"lq": torch.full((3, self.gt_size, self.gt_size), rng.random())}


class _BasicSRsOwn(Dataset):
    """One in BasicSR's style."""

    without_gt = True

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"lq": torch.full((3, 4, 4), float(np.random.rand()))}


class TestOtherDatasets:
    @pytest.fixture
    def registry(self, monkeypatch) -> Registry:
        from basicsr.data import loading

        registry = Registry("dataset", "basicsr.data")
        for kind in (_Fixed, _BasicSRsOwn):
            registry.register(kind)
        monkeypatch.setattr(loading, "DATASET_REGISTRY", registry)
        return registry

    @pytest.mark.parametrize("name", ["_Fixed", "_BasicSRsOwn"])
    def test_work_as_before_and_refuse_to_grow(self, registry, entry, name):
        options = load_options(whole(entry), training=True, paths=False).datasets["train"]
        fields = {name: getattr(options, name) for name in type(options).model_fields}
        plain = {**fields, "type": name, "arguments": {}, "gt_sizes": None, "mini_batch_sizes": None, "iters": None}
        place = {"seed": 5, "rank": 0, "world_size": 1, "start_iteration": 0, "total_iterations": 2}
        place |= {"accumulate": 1, "on_gpu": False}
        (batch,) = next(iter(build_train_loader(SimpleNamespace(**plain), **place)))
        assert len(batch.lq) == 4
        grows = SimpleNamespace(**{**fields, "type": name, "arguments": {}})
        with pytest.raises(OptionsError, match=f"gt_sizes: {name} has patches of one size; use PairedImageDataset"):
            build_train_loader(grows, **place)

    @pytest.mark.parametrize("dataset", [_Fixed(), _BasicSRsOwn({})], ids=["ours", "BasicSR's"])
    def test_are_not_asked_for_a_patch_in_vain(self, dataset):
        assert load_sample(dataset, SampleKey(0, seed=1))["lq"].shape[0] == 3
        with pytest.raises(OptionsError, match="has patches of one size"):
            load_sample(dataset, SampleKey(0, seed=1, gt_size=8))


class TestOptions:
    def test_the_keys_of_restormers_files_are_taken(self, entry):
        train = load_options(whole(entry), training=True, paths=False).datasets["train"]
        assert (train.gt_sizes, train.mini_batch_sizes, train.iters) == ((8, 12, 16), (4, 3, 1), (3, 2, 4))
        assert train.to_data()["iters"] == [3, 2, 4]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"iters": None}, "datasets.train.gt_sizes: needs iters beside it"),
            ({"iters": None, "gt_sizes": None}, "datasets.train.mini_batch_sizes: needs gt_sizes and iters beside it"),
            ({"iters": [9]}, "many entries, one per stage: gt_sizes has 3, mini_batch_sizes has 3, iters has 1"),
            ({"gt_sizes": [8, 12, 20]}, "datasets.train.gt_size: must be the largest of gt_sizes, 20, got 16"),
            ({"gt_size": None}, "datasets.train.gt_size: must be the largest of gt_sizes, 16, got none"),
            ({"batch_size_per_gpu": 2}, "batch_size_per_gpu: must be the first of mini_batch_sizes, 4, got 2"),
            ({"iters": [3, 2, 3]}, "iters: end after 8 iterations, before train: total_iter 9; lengthen the last"),
        ],
    )  # fmt: skip
    def test_mistakes_are_told_in_one_line(self, entry, changes, message):
        wrong = {key: value for key, value in {**entry, **changes}.items() if value is not None}
        with pytest.raises(OptionsError) as caught:
            load_options(whole(wrong), training=True, paths=False)
        _, *lines = str(caught.value).split("\n")
        assert len(lines) == 1 and message in lines[0], lines

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mini_batch_sizes": [4, 0, 1]}, "mini_batch_sizes[1]: input should be greater than or equal to 1, got 0"),
            ({"gt_sizes": []}, "gt_sizes: tuple should have at least 1 item"),
            ({"gt_sizes": "8"}, "gt_sizes: input should be a list, got '8'"),
        ],
    )
    def test_what_are_no_sizes_is_told_first(self, entry, changes, message):
        with pytest.raises(OptionsError) as caught:
            load_options(whole({**entry, **changes}), training=True, paths=False)
        assert f"datasets.train.{message}" in str(caught.value).split("\n")[1]

    def test_sizes_that_are_no_multiples_of_the_scale_are_told(self, entry):
        options = whole({**entry, "gt_sizes": [9, 12, 16]})
        options |= {"scale": 2, "network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3}}
        with pytest.raises(OptionsError, match="gt_sizes: must be multiples of scale 2, got 9"):
            load_options(options, training=True, paths=False)

    def test_the_contrastive_patch_fits_into_the_smallest_patch(self, entry):
        options = whole(entry, contrastive_opt={"type": "patch", "patch_size": 12})
        with pytest.raises(OptionsError, match="patch_size: 12 is larger than the smallest gt_size 8; lower it"):
            load_options(options, training=True, paths=False)

    def test_only_training_grows(self, entry):
        tested = {"name": "run", "model_type": "SRModel", "scale": 1, "path": {"pretrain_network_g": "g.pth"}}
        tested |= {"network_g": whole(entry)["network_g"], "datasets": {"test": {**entry, "name": "test"}}}
        with pytest.raises(OptionsError, match=r"datasets\.test\.gt_sizes: is of training only; remove it"):
            load_options(tested, training=False, paths=False)
        columns = ("gt_sizes", "mini_batch_sizes", "iters", "gt_size", "batch_size_per_gpu")
        plain = {key: value for key, value in entry.items() if key not in columns}
        tested["datasets"] = {"test": {**plain, "name": "test"}, "train": {**entry, "gt_size": 48}}
        load_options(tested, training=False, paths=False)  # what test.py does not read it does not judge
        options = whole(copy.deepcopy(entry))
        options["datasets"]["val"] = {**entry, "name": "val"}
        options["val"] = {"metrics": {"psnr": {"type": "calculate_psnr"}}}
        with pytest.raises(OptionsError, match=r"datasets\.val\.gt_sizes: is of training only; remove it"):
            load_options(options, training=True, paths=False)


class TestPairs:
    @pytest.fixture
    def small(self, image_pairs) -> dict[str, Any]:
        """HR 20x20, LR 10x10."""
        gt, lq = image_pairs(scale=2, count=1, size=10)
        common = {"type": "PairedImageDataset", "dataroot_gt": str(gt), "dataroot_lq": str(lq), "scale": 2}
        return {**common, "filename_tmpl": "{}x2", "phase": "train", "gt_size": 16, "use_rot": False}

    def test_small_images_are_refused_or_extended_by_reflection(self, small):
        with pytest.raises(DataError, match="smaller than patches of 24"):
            build_dataset({**small, "gt_size": 24})[0]
        item = build_dataset({**small, "gt_size": 24, "extend_small": True, "use_hflip": False})[0]
        unchanged = build_dataset({**small, "gt_size": 20, "use_hflip": False})[0]
        for key, side, missing in (("gt", 20, 4), ("lq", 10, 2)):
            mirrored = np.pad(unchanged[key].numpy(), ((0, 0), (0, missing), (0, missing)), "symmetric")
            assert item[key].shape[-1] == side + missing
            np.testing.assert_array_equal(item[key].numpy(), mirrored)

    def test_images_that_are_large_enough_are_cut_as_ever(self, small):
        plain, extending = build_dataset(small), build_dataset({**small, "extend_small": True})
        assert all(torch.equal(plain[0][key], extending[0][key]) for key in ("gt", "lq"))

    def test_pairs_that_do_not_fit_are_refused_all_the_same(self, small):
        with pytest.raises(DataError, match="at scale 4 the HR image must be"):
            build_dataset({**small, "scale": 4, "gt_size": 64, "extend_small": True})[0]

    def test_flips_alone_swap_no_axes(self, small):
        straight = {**small, "gt_size": 20, "use_vflip": True}
        image = build_dataset({**straight, "use_hflip": False, "use_vflip": False})[0]["gt"]
        wanted = [image, image.flip(1), image.flip(2), image.flip(1, 2)]
        dataset = build_dataset(straight)
        seen = np.zeros(4, int)
        for seed in range(200):
            item = dataset.load(0, generator(seed, "sample"))
            equal = [torch.equal(item["gt"], view) for view in wanted]
            assert sum(equal) == 1
            lq = torch.nn.functional.avg_pool2d(item["gt"], 2)
            assert (lq - item["lq"]).abs().max() < 0.01
            seen[equal.index(True)] += 1
        assert (seen > 30).all()

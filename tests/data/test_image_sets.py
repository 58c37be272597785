"""What datasets take as their folders: those below, lists, patterns, weights; each image with a name of its own."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr.config.schema import DatasetOptions
from basicsr.data import build_dataset
from basicsr.data.checks.notes import files_digest, fingerprint
from basicsr.data.loading import build_eval_dataset, build_train_loader
from basicsr.data.sample_order import SampleOrder
from basicsr.data.sampling import KeySampler
from basicsr.data.storage import Share
from basicsr.data.teacher_outputs import cached_names
from basicsr.files.images import encode_png
from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.metrics.evaluator import image_names
from basicsr.utils import randomness
from basicsr.utils.errors import DataError, OptionsError

BLOCK = {"name": "x", "type": "PairedImageDataset", "phase": "train", "scale": 2, "gt_size": 8, "filename_tmpl": "{}x2"}
SETS = {"A": ["1", "2", "sub/1"], "B": ["1", "b"]}


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two sets A/HR, A/LR/X2, B/HR, B/LR/X2 in the current folder, every image of other contents."""
    monkeypatch.chdir(tmp_path)
    number = 0
    for name, images in SETS.items():
        for image in images:
            number += 1
            pixels = picture(number)
            files = {f"{name}/HR/{image}.png": pixels, f"{name}/LR/X2/{image}x2.png": pixels[::2, ::2]}
            for path, content in files.items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(path, content)
    return tmp_path


def pairs(gt: object, lq: object, **further: object) -> list[tuple[str, str]]:
    dataset = build_dataset({**BLOCK, "dataroot_gt": gt, "dataroot_lq": lq, **further})
    for index, paths in enumerate(dataset.paths):
        sample = dataset.load(index, np.random.default_rng(0))
        assert sample["gt"].shape == (3, 8, 8)
        assert {role: sample[f"{role}_path"] for role in ("gt", "lq")} == {
            role: paths[f"{role}_path"] for role in ("gt", "lq")
        }
    return [(paths["gt_path"], paths["lq_path"]) for paths in dataset.paths]


def stored(gt: object, lq: object, **further: object):
    return build_dataset({**BLOCK, "dataroot_gt": gt, "dataroot_lq": lq, **further}).stored_images()


IN_A = [(f"A/HR/{name}.png", f"A/LR/X2/{name}x2.png") for name in SETS["A"]]
IN_B = [(f"B/HR/{name}.png", f"B/LR/X2/{name}x2.png") for name in SETS["B"]]
ALL = (["A/HR", "B/HR"], ["A/LR/X2", "B/LR/X2"])


class TestPairs:
    @pytest.mark.parametrize(
        ("gt", "lq", "wanted"),
        [
            ("A/HR", "A/LR/X2", IN_A),
            ("A/HR/", "A/LR/X2/", IN_A),
            (["B/HR", "A/HR"], ["B/LR/X2", "A/LR/X2"], IN_B + IN_A),
            (["A/HR"], "A/LR/X2", IN_A),
            ({"path": "A/HR", "weight": 3}, ["A/LR/X2"], IN_A),
            ("*/HR", "*/LR/X2", IN_A + IN_B),
            ("A/HR/*.png", "A/LR/X2/*.png", IN_A[:2]),
            (["A/HR/*.png", "*/HR/sub"], ["A/LR/X2/*.png", "*/LR/X2/sub"], IN_A),
        ],
    )
    def test_belong_together_by_their_names_in_their_folders(self, sets, gt, lq, wanted):
        assert pairs(gt, lq) == wanted

    def test_of_lists_that_name_them(self, sets):
        Path("a.txt").write_text("sub/1.png (16,16,3)\n1.png\n")
        Path("b.txt").write_text("b.png\n")
        assert pairs("A/HR", "A/LR/X2", meta_info_file="a.txt") == [IN_A[2], IN_A[0]]
        assert pairs(*ALL, meta_info_file=["a.txt", "b.txt"]) == [IN_A[2], IN_A[0], IN_B[1]]
        assert pairs(*ALL, meta_info_file=["a.txt", None]) == [IN_A[2], IN_A[0], *IN_B]
        with pytest.raises(OptionsError, match="dataroot_gt has 2, meta_info_file has 1"):
            pairs(*ALL, meta_info_file="a.txt")
        with pytest.raises(OptionsError, match=r"a\.txt names images of a folder, dataroot_lq is the pattern \*/LR/X2"):
            pairs("*/HR", "*/LR/X2", meta_info_file="a.txt")

    def test_of_a_list_may_lie_in_one_folder_as_basicsr_has_it(self, sets):
        shutil.move("A/LR/X2/sub/1x2.png", "A/LR/X2/sub1x2.png")
        shutil.move("A/HR/sub/1.png", "A/HR/sub/sub1.png")
        Path("a.txt").write_text("sub/sub1.png\n")
        assert pairs("A/HR", "A/LR/X2", meta_info_file="a.txt") == [("A/HR/sub/sub1.png", "A/LR/X2/sub1x2.png")]

    def test_of_a_list_do_not_leave_the_lr_folder_through_a_link(self, sets):
        shutil.move("A/LR/X2/sub", "elsewhere")
        os.symlink("../../../elsewhere", "A/LR/X2/sub")
        Path("a.txt").write_text("sub/1.png\n")
        with pytest.raises(DataError, match=r"sub/1x2\.png, which leads out of A/LR/X2 through a symbolic link"):
            pairs("A/HR", "A/LR/X2", meta_info_file="a.txt")
        assert pairs("A/HR", "A/LR/X2") == IN_A  # a listing may follow it: nobody else wrote it

    def test_of_several_databases(self, sets):
        for name, images in SETS.items():
            for role, step in (("HR", 1), ("LR", 2)):
                with LmdbMaker(f"{name}_{role}.lmdb") as maker:
                    for image in images:
                        pixels = cv2.imread(f"{name}/HR/{image}.png")[::step, ::step]
                        maker.put(encode_png(pixels, 1), image, pixels.shape)
        backend = {"type": "lmdb"}
        files = build_dataset({**BLOCK, "dataroot_gt": ALL[0], "dataroot_lq": ALL[1]})
        roots = (["A_HR.lmdb", "B_HR.lmdb"], ["A_LR.lmdb", {"path": "B_LR.lmdb"}])
        databases = build_dataset({**BLOCK, "dataroot_gt": roots[0], "dataroot_lq": roots[1], "io_backend": backend})
        assert [path["gt_path"] for path in databases.paths][2:4] == ["A_HR.lmdb/sub/1", "B_HR.lmdb/1"]
        with pytest.raises(OptionsError, match=r"\*_HR\.lmdb is a pattern, and .* databases alone; write a list"):
            build_dataset({**BLOCK, "dataroot_gt": "*_HR.lmdb", "io_backend": backend})
        assert fingerprint(files) == fingerprint(databases)
        assert databases.stored_images().label("gt", 3) == "B_HR.lmdb (key '1')"


class TestRefused:
    @pytest.mark.parametrize(
        ("gt", "lq", "error", "message"),
        [
            (["A/HR", "B/HR"], "A/LR/X2", OptionsError, r"dataroot_lq has 1, dataroot_gt has 2"),
            (["A/HR", "C"], ["A/LR/X2", "B/LR/X2"], DataError, "cannot read folder C: No such file"),
            (["A/HR", "empty"], ["A/LR/X2", "B/LR/X2"], DataError, r"empty holds no image .*check the path"),
            (
                ["A/HR", "A/HR"],
                ["A/LR/X2", "A/LR/X2"],
                DataError,
                r"A/LR/X2/1x2\.png is listed twice; name each",
            ),
            (["A/HR", "A/HR/sub"], ["A/LR/X2", "A/LR/X2/sub"], DataError, "none inside another"),
            (["A/HR", "link"], ["A/LR/X2", "linked"], DataError, r"A/LR/X2/1x2\.png and linked/1x2\.png are one image"),
            (["B/HR", "A/HR"], ["A/LR/X2", "B/LR/X2"], DataError, r"B/HR has 1 image \(b\.png\) without a partner"),
            ("A", "A/LR/X2", DataError, r"A has .* images .*without a partner"),
            ("x/*", "A/LR/X2", DataError, r"x/\* matches nothing"),
            ([], "A/LR/X2", OptionsError, "dataroot_gt: names no folder; give at least one"),
            (["A/HR", 3], "A/LR/X2", OptionsError, r"dataroot_gt\[1\]: must be a folder, a pattern such as"),
            (["A/HR", ["B/HR"]], "A/LR/X2", OptionsError, r"dataroot_gt\[1\]: must be a folder, a pattern such as"),
            (
                ["A/HR", {"path": "B/HR", "wieght": 1}],
                "A",
                OptionsError,
                r"\[1\]\.wieght: unknown key.*did you mean 'weight'",
            ),
            ([{"weight": 1}], "A/LR/X2", OptionsError, r"dataroot_gt\[0\]\.path: is required"),
            *(
                (
                    {"path": "A/HR", "weight": weight},
                    "A/LR/X2",
                    OptionsError,
                    "dataroot_gt.weight: must be a number above 0",
                )
                for weight in (0, -1, float("nan"), float("inf"), 1e9, "2", True, None)
            ),
            (
                {"path": "A/HR", "weight": 2},
                {"path": "A/LR/X2", "weight": 3},
                OptionsError,
                "weight of entry 1 is 3 in dataroot_lq and 2 in dataroot_gt",
            ),
        ],
    )
    def test_is_one_line(self, sets, gt, lq, error, message):
        Path("empty").mkdir()
        os.symlink("A/HR", "link")
        os.symlink("A/LR/X2", "linked")
        with pytest.raises(error, match=message) as caught:
            pairs(gt, lq)
        assert "\n" not in str(caught.value)

    def test_of_thousands_without_partner_names_three(self, tmp_path):
        for name in ("HR", "LR"):
            (tmp_path / name).mkdir()
        for number in range(3000):
            (tmp_path / "HR" / f"{number:04d}.png").touch()
        (tmp_path / "LR" / "0000x2.png").touch()
        with pytest.raises(
            DataError, match=r"HR has 2,999 images \(0001\.png, 0002\.png, 0003\.png, \.\.\.\)"
        ) as caught:
            pairs(str(tmp_path / "HR"), str(tmp_path / "LR"))
        assert len(str(caught.value)) < 500

    def test_are_weights_outside_training(self, sets):
        with pytest.raises(OptionsError, match="dataroot_lq: weight is of training only"):
            build_dataset({"type": "SingleImageDataset", "dataroot_lq": {"path": "A/HR", "weight": 2}})
        with pytest.raises(OptionsError, match="dataroot_gt: weight is of training only"):
            build_dataset(
                {**BLOCK, "phase": "val", "dataroot_gt": {"path": "A/HR", "weight": 2}, "dataroot_lq": "A/LR/X2"}
            )


class TestNames:
    @pytest.mark.parametrize(
        ("folders", "labels"),
        [
            (["d/A/HR", "d/B/HR"], ["A", "B"]),
            (["d/A/HR", "e/A/HR"], ["d", "e"]),
            (["A", "B/HR"], ["A", "B/HR"]),
            (["A/HR", "A/x/HR"], ["HR", "x/HR"]),
            (["d/*/A", "d/*/B"], ["1", "2"]),
        ],
    )
    def test_in_results_tell_folders_apart(self, tmp_path, monkeypatch, folders, labels):
        monkeypatch.chdir(tmp_path)
        for folder in folders:
            path = Path(folder.replace("*", "s"))
            path.mkdir(parents=True, exist_ok=True)
            (path / "i.png").touch()
        found = build_dataset({"type": "SingleImageDataset", "dataroot_lq": folders}).stored_images()
        wanted = [f"{label}/{'s/' if '*' in folder else ''}i" for label, folder in zip(labels, folders, strict=True)]
        assert found.titles("lq") == wanted

    def test_of_images_are_unique_where_files_are_called_by_them(self, sets):
        options = DatasetOptions(**{**BLOCK, "phase": "val"}, dataroot_gt=ALL[0], dataroot_lq=ALL[1])
        assert image_names(build_eval_dataset(options)) == ["A/1x2", "A/2x2", "A/sub/1x2", "B/1x2", "B/bx2"]
        assert cached_names(stored(*ALL)) == ["1/1", "1/2", "1/sub/1", "2/1", "2/b"]
        assert cached_names(stored("*/HR", "*/LR/X2")) == ["A/1", "A/2", "A/sub/1", "B/1", "B/b"]

    def test_of_two_endings_are_refused_where_results_would_be_called_by_them(self, sets):
        shutil.copy("A/HR/1.png", "A/HR/1.jpg")
        dataset = build_dataset({"type": "SingleImageDataset", "dataroot_lq": ["A/HR", "B/HR"]})
        block = {"name": "x", "type": "SingleImageDataset", "phase": "test", "scale": 2}
        assert len(dataset) == 6
        with pytest.raises(DataError, match=r"A/HR/1\.jpg and A/HR/1\.png would both be called A/1 in the results"):
            image_names(build_eval_dataset(DatasetOptions(**block, dataroot_lq=["A/HR", "B/HR"])))

    def test_stay_where_folders_are_moved(self, sets):
        before = build_dataset({**BLOCK, "dataroot_gt": ALL[0], "dataroot_lq": ALL[1]})
        known = fingerprint(before), files_digest(before)
        shutil.move("A", "moved")
        moved = [[folder.replace("A/", "moved/") for folder in folders] for folders in ALL]
        after = build_dataset({**BLOCK, "dataroot_gt": moved[0], "dataroot_lq": moved[1]})
        assert (fingerprint(after), files_digest(after)) == known

    def test_and_weights_tell_one_set_from_another(self, sets):
        def known(gt: object, lq: object = ALL[1]) -> dict[str, object]:
            return fingerprint(build_dataset({**BLOCK, "dataroot_gt": gt, "dataroot_lq": lq}))

        plain = known(ALL[0])
        assert plain["weights"] == "none"
        assert known([{"path": "A/HR", "weight": 1.0}, "B/HR"]) == plain
        assert known(["A/HR", {"path": "B/HR", "weight": 2}])["weights"] == "1 of 3, 2 of 2"
        assert known(ALL[0][::-1], ALL[1][::-1])["names"] != plain["names"]


class TestOrder:
    def test_without_weights_is_a_permutation_as_before(self):
        order = SampleOrder(7, 3, True, [Share(3), Share(4)])
        wanted = [
            randomness.generator(randomness.sample_seed(3, number), "sample order").permutation(7) for number in (0, 1)
        ]
        assert [order.index(position) for position in range(14)] == [*wanted[0], *wanted[1]]

    @pytest.mark.parametrize(
        ("counts", "weights", "length"),
        [
            ((3, 2), (1, 2), 7),
            ((3, 2), (2, 2), 10),
            ((3, 2), (0.5, 1.25), 4),
            ((5, 1, 7), (0.1, 0.03, 1), 251),
            ((1, 50), (100, 0.02), 101),
            ((4,), (0.5,), 2),
        ],
    )
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_with_weights_has_the_exact_shares(self, counts, weights, length, shuffle):
        shares = [Share(count, weight) for count, weight in zip(counts, weights, strict=True)]
        order = SampleOrder(sum(counts), 3, shuffle, shares)
        assert order.length == length
        folder_of = [number for number, count in enumerate(counts) for _ in range(count)]
        total = sum(count * weight for count, weight in zip(counts, weights, strict=True))
        taken: Counter[int] = Counter()
        for passes in range(1, 41):
            taken.update(order.index(position) for position in range((passes - 1) * length, passes * length))
            for number, share in enumerate(shares):
                own = [taken[image] for image, folder in enumerate(folder_of) if folder == number]
                assert abs(sum(own) - passes * length * share.count * share.weight / total) <= 1 + 1e-9
                assert max(own) - min(own) <= 1

    def test_with_weights_depends_on_seed_and_position_alone(self):
        shares = [Share(30, 1), Share(10, 2.5)]
        order = [SampleOrder(40, 3, True, shares).index(position) for position in range(300)]
        assert [SampleOrder(40, 3, True, shares).index(position) for position in (299, 7, 120)] == [
            order[299],
            order[7],
            order[120],
        ]
        assert order != [SampleOrder(40, 4, True, shares).index(position) for position in range(300)]
        assert order[:55] != order[55:110]

        def keys(**place: int) -> list:
            sampler = KeySampler(num_samples=40, batch_size=2, seed=3, total_iterations=20, shares=shares, **place)
            return [[key.index for key in batch] for batch in sampler]

        ranks = [keys(rank=rank, world_size=2) for rank in (0, 1)]
        assert [image for both in zip(*ranks, strict=True) for batch in both for image in batch] == order[:80]
        assert keys(start_iteration=7) == keys()[7:]

    def test_with_weights_far_apart_is_refused(self):
        with pytest.raises(OptionsError, match=r"takes some images 900,000 times; at most 10,000,000 and 10,000 are"):
            SampleOrder(2, 0, True, [Share(1, 900), Share(1, 0.001)])
        with pytest.raises(OptionsError, match=r"a pass has 100,000,000 samples and takes some images 1,000 times"):
            SampleOrder(100_001, 0, True, [Share(100_000, 999.99), Share(1, 1000)])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_reaches_training(self, sets, workers):
        options = DatasetOptions(
            **BLOCK,
            dataroot_gt=["A/HR", {"path": "B/HR", "weight": 3}],
            dataroot_lq=ALL[1],
            batch_size_per_gpu=3,
            num_worker_per_gpu=workers,
        )
        loader = build_train_loader(options, accumulate=1, on_gpu=False, seed=0, total_iterations=6)
        assert (loader.num_samples, loader.iterations_per_epoch) == (5, 3)
        seen = Counter(path for (batch,) in loader for path in batch.gt_paths)
        assert seen == {path: 2 for path, _ in IN_A} | {path: 6 for path, _ in IN_B}

from __future__ import annotations

import numpy as np
import pytest

from basicsr.files import lmdb_databases as lmdb_util
from basicsr.files.images import encode_png
from basicsr.files.lmdb_databases import LmdbMaker, read_meta_info
from basicsr.utils import FileClient, imfrombytes
from basicsr.utils.errors import DataError


def test_writes_basicsrs_layout(tmp_path):
    img = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    with LmdbMaker(tmp_path / "a.lmdb", batch=2) as maker:
        for name in ("0002_s001", "0001_s001", "a.b"):
            maker.put(encode_png(img, 1), name, (6, 7, 3))
    folder = tmp_path / "a.lmdb"
    assert sorted(entry.name for entry in folder.iterdir()) == ["data.mdb", "lock.mdb", "meta_info.txt"]
    text = (folder / "meta_info.txt").read_text()
    assert text == "0002_s001.png (6,7,3) 1\n0001_s001.png (6,7,3) 1\na.b.png (6,7,3) 1\n"
    assert list(read_meta_info(folder).items()) == [(k, (6, 7, 3)) for k in ("0001_s001", "0002_s001", "a.b")]
    content = FileClient("lmdb", db_paths=str(folder)).get("a.b")
    np.testing.assert_array_equal(imfrombytes(content), img)


def test_large_images_are_not_kept_in_memory_until_many_have_come(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_util, "_AT_ONCE", 100)
    with LmdbMaker(tmp_path / "a.lmdb") as maker:
        for key in "abcde":
            before = maker._transaction
            maker.put(bytes(60), key, (4, 5, 3))
            assert (maker._transaction is before) == (key in "ace")  # committed after every second
    assert len(read_meta_info(tmp_path / "a.lmdb")) == 5
    assert FileClient("lmdb", db_paths=str(tmp_path / "a.lmdb")).get("e") == bytes(60)


def test_nothing_appears_under_the_name_before_all_is_written(tmp_path):
    with pytest.raises(RuntimeError), LmdbMaker(tmp_path / "a.lmdb") as maker:
        maker.put(b"x", "a", (1, 1, 3))
        assert not (tmp_path / "a.lmdb").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_database_is_never_written_to(tmp_path):
    (tmp_path / "a.lmdb").mkdir()
    with pytest.raises(DataError, match="exists already"):
        LmdbMaker(tmp_path / "a.lmdb")
    with pytest.raises(DataError, match=r"must end in \.lmdb"):
        LmdbMaker(tmp_path / "a")


def test_a_disk_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^cannot write .*/file/a\.lmdb: Not a directory; "):
        LmdbMaker(tmp_path / "file/a.lmdb")
    with (
        pytest.raises(DataError, match=r"^cannot write .*a\.lmdb: .*MDB_MAP_FULL"),
        LmdbMaker(tmp_path / "a.lmdb", map_size=1 << 16) as maker,
    ):
        maker.put(bytes(1 << 17), "large", (1, 1, 3))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


def test_a_key_twice_or_too_long_is_refused(tmp_path):
    for key, message in (("a", "two images are called 'a'"), ("x" * 600, "longer than 511 bytes")):
        with pytest.raises(DataError, match=message), LmdbMaker(tmp_path / "a.lmdb") as maker:
            maker.put(b"x", "a", (1, 1, 3))
            maker.put(b"x", key, (1, 1, 3))


@pytest.mark.parametrize("text, message", [("", "lists no image"), ("a.png 3x3\n", "line 1 of .* must look like")])
def test_a_meta_info_that_basicsr_would_not_write_is_refused(tmp_path, text, message):
    (tmp_path / "meta_info.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_meta_info(tmp_path)

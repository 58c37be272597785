from __future__ import annotations

import multiprocessing
import pickle

import lmdb
import pytest

from basicsr.utils import FileClient
from basicsr.utils.errors import DataError, OptionsError


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "some.lmdb"
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
        transaction.put("naïve name".encode(), b"other")
    return str(path)


def read_in_child(client: FileClient, queue: multiprocessing.Queue) -> None:
    queue.put(client.get("key"))


def test_disk_reads_bytes_and_text(tmp_path):
    (tmp_path / "a").write_text("grün", encoding="utf-8")
    assert FileClient("disk").get(tmp_path / "a") == "grün".encode()
    assert FileClient().get_text(str(tmp_path / "a")) == "grün"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png: No such file"):
        FileClient("disk").get(tmp_path / "nothing.png")


def test_lmdb_reads_values_of_named_databases(database):
    client = FileClient("lmdb", db_paths=[database], client_keys=["lq"])
    assert client.get("key", "lq") == b"value"
    assert client.get("naïve name", "lq") == b"other"
    with pytest.raises(OptionsError, match="'gt'; there are: lq"):
        client.get("key", "gt")


def test_missing_keys_and_databases_are_named(database, tmp_path):
    with pytest.raises(DataError, match=r"some\.lmdb has no key 'absent'"):
        FileClient("lmdb", db_paths=database).get("absent")
    with pytest.raises(DataError, match=r"none\.lmdb is no LMDB database"):
        FileClient("lmdb", db_paths=str(tmp_path / "none.lmdb")).get("key")


def test_a_damaged_database_is_refused_in_one_line(tmp_path):
    (tmp_path / "bad.lmdb").mkdir()
    (tmp_path / "bad.lmdb" / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(DataError, match=r"cannot open LMDB database .*bad\.lmdb") as caught:
        FileClient("lmdb", db_paths=str(tmp_path / "bad.lmdb")).get("key")
    assert "\n" not in str(caught.value)


def test_two_clients_share_a_database_in_one_process(database):
    clients = [FileClient("lmdb", db_paths=database) for _ in range(2)]
    assert [client.get("key") for client in clients] == [b"value", b"value"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_in_use_works_in_a_child_and_then_in_the_parent(database, method):
    client = FileClient("lmdb", db_paths=database)
    assert client.get("key") == b"value"
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(client, queue))
    child.start()
    assert queue.get(timeout=60) == b"value"
    child.join()
    assert child.exitcode == 0
    assert client.get("naïve name") == b"other"


def test_reading_leaves_the_folder_as_it_is(database, tmp_path):
    before = sorted(entry.name for entry in (tmp_path / "some.lmdb").iterdir())
    pickle.loads(pickle.dumps(FileClient("lmdb", db_paths=database))).get("key")
    assert sorted(entry.name for entry in (tmp_path / "some.lmdb").iterdir()) == before


def test_unknown_backends_and_options_are_refused():
    with pytest.raises(OptionsError, match="disk, lmdb, got 'memcached'"):
        FileClient("memcached")
    with pytest.raises(OptionsError, match="has no option lock; allowed: db_paths, client_keys, readahead"):
        FileClient("lmdb", db_paths="a.lmdb", lock=True)

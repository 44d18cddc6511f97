"""The probe store: what is kept, what is found again, and files that are none."""

import multiprocessing
import sqlite3
import sys

import numpy as np
import pytest
from command_line import largest_file
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from exltune.errors import DataError, ExltuneError, StorageError, UsageError
from exltune.schema.probe import ProbeContext, ProbedMix, Swap
from exltune.store.database import Database
from exltune.store.probe_exchange import merge, stored_probes, stored_sets
from exltune.store.probe_files import read_probes, write_probes
from exltune.store.probe_tables import TABLES
from exltune.store.probes import ProbeStore, content_key, row_ids

CONTEXT = ProbeContext(model_sha256="a" * 64, architecture="Glm4MoeForCausalLM", engine="reference", code="1")
TOKENS = np.arange(40).reshape(5, 8)
ROWS = row_ids(TOKENS)


def mix(name, **swaps):
    return ProbedMix(name=name, swaps={unit: Swap(choice="2", sha256=sha256) for unit, sha256 in swaps.items()})


def sums(rows, seed=0):
    values = np.random.default_rng(seed).random((8, rows))
    values[3:] = np.floor(7 * values[3:])
    return values


def store_at(path, context=CONTEXT):
    return ProbeStore(Database(path), context)


@pytest.fixture
def file(tmp_path):
    """A store with one probe on rows 1 to 3."""
    store_at(tmp_path / "scores.db").add([(mix("q@2", q="x"), sums(3))], ROWS[1:4], 8)
    return tmp_path / "scores.db"


def test_nothing_is_made_by_looking(tmp_path):
    store = store_at(tmp_path / "new" / "scores.db")
    assert store.find([content_key(mix("q@2", q="x"))], ROWS) == {}
    store.add([], ROWS, 8)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_found_by_their_tokens(file):
    key = content_key(mix("any name", q="x"))
    found = store_at(file).find([key, "0" * 64], [*ROWS[3:], ROWS[1], ROWS[3]])
    assert found.keys() == {key}
    assert np.isnan(found[key][:, 1]).all()
    expected = sums(3)[:, [2, 0, 2]]
    assert (found[key][:, [0, 2, 3]] == expected).all()


def test_longer_scores_join_shorter_ones_and_the_first_stays(file):
    key, probed = content_key(mix("", q="x")), mix("q@2", q="x")
    store_at(file).add([(probed, sums(4, seed=1))], ROWS[:4], 8)
    found = store_at(file).find([key], ROWS[:4])[key]
    assert (found[:, 1:] == sums(3)).all()
    assert (found[:, 0] == sums(4, seed=1)[:, 0]).all()
    # The same again, with other numbers: exactly one is kept.
    store_at(file).add([(probed, sums(4, seed=2))], ROWS[:4], 8)
    assert (store_at(file).find([key], ROWS[:4])[key] == found).all()
    assert len(list(stored_probes(Database(file)))) == 2


def test_nothing_is_taken_for_what_it_is_not(file):
    key = content_key(mix("q@2", q="x"))
    others = [mix("q@2", q="y"), mix("q@2", k="x"), mix("q@2", q="x", k="x"), mix("q@2")]
    assert store_at(file).find([content_key(other) for other in others], ROWS) == {}
    assert content_key(mix("another", q="x")) == key
    cache = [ProbedMix(name="", swaps={"cache.k": Swap(choice=choice)}) for choice in "23"]
    assert content_key(cache[0]) != content_key(cache[1])
    for change in ({"model_sha256": "b" * 64}, {"engine": "exllamav3"}, {"code": "2"}):
        assert store_at(file, CONTEXT.model_copy(update=change)).find([key], ROWS) == {}
    other = TOKENS.copy()
    other[:, -1] += 1
    assert np.isnan(store_at(file).find([key], row_ids(other))[key]).all()


def _write(path, number):
    store = store_at(path)
    for round_ in range(5):
        store.add([(mix("shared", q="s"), sums(5)), (mix("", q=f"{number} {round_}"), sums(5))], ROWS, 8)


def test_processes_write_at_once(tmp_path):
    path = tmp_path / "scores.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    (found,) = stored_sets(Database(path))
    assert (found.mixes, found.rows, found.row_length) == (1 + 3 * 5, 5, 8)
    # Nothing but the store itself is left.
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_costs_nothing_that_was_there(file):
    before = list(stored_probes(Database(file)))
    with largest_file(file.stat().st_size), pytest.raises(StorageError, match=r"scores\.db.*the same command again"):
        store_at(file).add([(mix("", q=str(n)), sums(500)) for n in range(20)], row_ids(np.ones((500, 2))), 2)
    assert list(stored_probes(Database(file))) == before
    store_at(file).add([(mix("", q="z"), sums(5))], ROWS, 8)
    assert len(list(stored_probes(Database(file)))) == 2


def test_a_full_disk_leaves_no_new_file(tmp_path):
    with largest_file(100), pytest.raises(StorageError):
        store_at(tmp_path / "new" / "scores.db").add([(mix("", q="z"), sums(5))], ROWS, 8)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_told_with_the_way_out(file):
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"no database" * 1000, content[:4096] + b"\xff" * 8192):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"scores\.db: .*damaged.*move the file away"):
            Database(file)
    file.write_bytes(content)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE scores SET sums = x'00'")
    connection.close()
    with pytest.raises(DataError, match="not as many sums as rows"):
        store_at(file).find([content_key(mix("q@2", q="x"))], ROWS)


def test_other_versions_and_other_programs_are_refused(file, tmp_path):
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE exltune_probes SET number = 7")
    connection.close()
    with pytest.raises(DataError, match=r"version 7.*version 1.*Export it"):
        Database(file)
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE studies (id)")
    connection.close()
    with pytest.raises(DataError, match="another program's"):
        Database(tmp_path / "theirs.db")
    with pytest.raises(UsageError, match=r"a directory is not a probe store.*scores\.db"):
        Database(tmp_path)


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense://", "sqlite://", "postgresql+nodriver://host/db", "://"])
def test_urls_that_name_no_store(url):
    with pytest.raises(UsageError, match="`store`"):
        Database(url)


def test_an_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "scores.db").touch()
    store_at(f"sqlite:///{tmp_path}/scores.db").add([(mix("q@2", q="x"), sums(5))], ROWS, 8)
    assert len(list(stored_probes(Database(tmp_path / "scores.db")))) == 1


def test_a_file_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    with pytest.raises(StorageError, match="no scores can be kept there"):
        Database(tmp_path / "a file" / "deeper" / "scores.db").check_writable()
    # Whoever runs the tests may be root, whom only a read-only file system stops.
    store_at(tmp_path / "scores.db").add([(mix("q@2", q="x"), sums(3))], ROWS[1:4], 8)
    read_only = tmp_path / "scores.db"
    monkeypatch.setattr("os.access", lambda path, mode: path != read_only)
    with pytest.raises(StorageError, match=r"scores.db cannot be written.*give another `store`"):
        Database(read_only).check_writable()
    Database(tmp_path / "new" / "scores.db").check_writable()
    assert not (tmp_path / "new").exists()


def test_a_missing_driver_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"no driver .*pip install 'exltune\[postgres\]'"):
        Database("postgresql://user:secret@host/scores")


def test_tables_are_made_as_postgresql_wants_them():
    made = [str(CreateTable(table, if_not_exists=True).compile(dialect=postgresql.dialect())) for table in TABLES]
    (scores,) = [text for text in made if "sums BYTEA NOT NULL" in text]
    assert "PRIMARY KEY (context, mix, token_rows)" in scores


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_exported_probes_come_back_to_the_last_bit(file, tmp_path, suffix):
    store_at(file, CONTEXT.model_copy(update={"code": "2"})).add([(mix("k,v@2", k="1", v="2"), sums(5, 3))], ROWS, 8)
    probes = list(stored_probes(Database(file)))
    assert write_probes(tmp_path / f"probes{suffix}", probes) == 2
    assert list(read_probes(tmp_path / f"probes{suffix}")) == probes


def test_merging_twice_changes_nothing(file, tmp_path):
    target = Database(tmp_path / "all.db")
    store_at(tmp_path / "all.db").add([(mix("o@2", o="x"), sums(5))], ROWS, 8)
    assert [(m.added, m.known) for m in (merge(target, stored_probes(Database(file))) for _ in "12")] == [
        (1, 0),
        (0, 1),
    ]
    assert {probe.mix.name for probe in stored_probes(target)} == {"q@2", "o@2"}
    assert list(stored_probes(Database(file))) == [p for p in stored_probes(target) if p.mix.name == "q@2"]


def test_different_numbers_for_one_probe_are_named_and_nothing_is_merged(file, tmp_path):
    other = store_at(tmp_path / "other.db")
    other.add([(mix("o@2", o="x"), sums(5))], ROWS, 8)
    other.add([(mix("q@2", q="x"), sums(3, seed=9))], ROWS[1:4], 8)
    with pytest.raises(DataError, match=r"'q@2' on 3 rows is in both stores with different numbers"):
        merge(Database(file), stored_probes(other.database))
    assert [probe.mix.name for probe in stored_probes(Database(file))] == ["q@2"]


def test_files_that_hold_no_probes_are_told_by_line(file, tmp_path):
    path = tmp_path / "probes.jsonl"
    write_probes(path, stored_probes(Database(file)))
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"probes\.jsonl: line 2"):
        list(read_probes(path))
    path = tmp_path / "probes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        list(read_probes(path))
    write_probes(path, stored_probes(Database(file)))
    path.write_text(path.read_text().replace(",8,", ",eight,", 1))
    with pytest.raises(DataError, match="is not a probe"):
        list(read_probes(path))


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@host:port/x", "mongo://me:secret@host/x", "sqlite://me:secret@x"]
)
def test_no_message_shows_a_password(url):
    with pytest.raises(ExltuneError) as error:
        Database(url)
    assert "secret" not in str(error.value)
    assert "me:***@" in str(error.value)

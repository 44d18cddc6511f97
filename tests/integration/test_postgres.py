"""Scores in a PostgreSQL database, on a server that the test starts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import contents, succeed

from exltune.errors import StorageError
from exltune.schema.probe import ProbeContext, ProbedMix, Swap
from exltune.store.database import Database
from exltune.store.probe_exchange import merge, stored_probes, stored_sets
from exltune.store.probe_files import read_probes, write_probes
from exltune.store.probes import ProbeStore, content_key, row_ids

CONTEXT = ProbeContext(model_sha256="a" * 64, architecture="Glm4MoeForCausalLM", engine="reference", code="1")
ROWS = row_ids(np.arange(40).reshape(5, 8))
WRITERS, ROUNDS, MIXES = 4, 8, 30


def _program(name: str) -> str | None:
    """Debian keeps the server's own programs out of the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return shutil.which(name, path=os.pathsep.join(map(str, reversed(folders)))) or shutil.which(name)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that ends with the tests, without a database's name."""
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'exltune[postgres]'")
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # The server refuses to run as root, and no other user may look into pytest's own folders.
    user, port = "postgres" if os.geteuid() == 0 else None, _free_port()
    folder = Path(tempfile.mkdtemp(prefix="exltune-postgres-"))
    if user is not None:
        shutil.chown(folder, user)

    def run(*words: object) -> None:
        command = [str(word) for word in words]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

    run(initdb, "-D", folder / "data", "-A", "trust", "-U", "tests", "-E", "UTF8", "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run(control, "-D", folder / "data", "-o", settings, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql://tests@127.0.0.1:{port}"
    finally:
        run(control, "-D", folder / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """An empty database of its own."""
    import psycopg

    name = request.node.name[:60]
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server}/{name}"


def mix(name: str, **swaps: str) -> ProbedMix:
    return ProbedMix(name=name, swaps={unit: Swap(choice="2", sha256=sha256) for unit, sha256 in swaps.items()})


def store_at(url: str) -> ProbeStore:
    return ProbeStore(Database(url), CONTEXT)


def test_scores_are_kept_and_found(url: str, tmp_path: Path) -> None:
    key, sums = content_key(mix("any name", q="x")), np.random.default_rng(0).random((8, 3))
    assert store_at(url).find([key], ROWS) == {}
    store_at(url).add([(mix("q@2", q="x"), sums)], ROWS[1:4], 8)
    store_at(url).add([(mix("q@2", q="x"), 2 * sums)], ROWS[1:4], 8)
    found = store_at(url).find([key, "0" * 64], ROWS)
    assert found.keys() == {key}
    assert (found[key][:, 1:4] == sums).all()
    assert np.isnan(found[key][:, [0, 4]]).all()
    assert [store_at(url).timing("a pass", lambda seconds=seconds: seconds) for seconds in (1.5, 2.5)] == [1.5, 1.5]
    (held,) = stored_sets(Database(url))
    assert (held.mixes, held.rows, held.context) == (1, 3, CONTEXT)


def test_scores_move_between_kinds_of_stores(url: str, tmp_path: Path) -> None:
    store_at(url).add([(mix("q@2", q="x"), np.ones((8, 3)))], ROWS[1:4], 8)
    write_probes(tmp_path / "probes.jsonl", stored_probes(Database(url)))
    file = Database(tmp_path / "scores.db")
    for known in (0, 1):
        merged = merge(file, read_probes(tmp_path / "probes.jsonl"))
        assert (merged.added, merged.known) == (1 - known, known)
    merged = merge(Database(url), stored_probes(file))
    assert (merged.added, merged.known) == (0, 1)
    assert list(stored_probes(file)) == list(stored_probes(Database(url)))


def write(url: str, number: int) -> str:
    """Many mixes, the same ones as every other writer in another order."""
    rng, store = np.random.default_rng(number), ProbeStore(Database(url), CONTEXT)
    try:
        for at in range(ROUNDS):
            mixes = [mix(str(one), q=f"{at} {one}") for one in rng.permutation(MIXES)]
            store.add([(one, np.full((8, 3), float(one.name))) for one in mixes], ROWS[1:4], 8)
    except StorageError as error:
        return str(error)
    return ""


def test_writers_do_not_lock_each_other_out(url: str) -> None:
    """Without a turn for each, several make the tables at once, or wait for each other's rows until one is refused."""
    with multiprocessing.get_context("spawn").Pool(WRITERS) as pool:
        told = pool.starmap(write, [(url, number) for number in range(WRITERS)], chunksize=1)
    assert told == [""] * WRITERS
    assert len(list(stored_probes(Database(url)))) == ROUNDS * MIXES


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'exltune[postgres]'")
    with pytest.raises(StorageError, match="cannot be read or written") as told:
        Database(f"postgresql://user:secret@127.0.0.1:{_free_port()}/scores")
    assert "secret" not in str(told.value)


def test_the_command_line_keeps_its_scores_there(
    url: str, moe_model: Path, quants: Path, data: list[str], tmp_path: Path
) -> None:
    words = ("measure", moe_model, "--quants", quants, "-l0", "--store", url, *data)
    first, again = (succeed(*words, "--out", tmp_path / f"{name}.json")["probes"] for name in ("a", "b"))
    assert first["scored"] > 0
    assert (again["scored"], again["reused"]) == (0, first["scored"] + first["reused"])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert [name for name in contents(tmp_path) if "scores" in name] == []

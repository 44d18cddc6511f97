"""Scored mixes in a storage: durable, shared, and read as numbers on equal rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exltune.errors import StorageError, UsageError
from exltune.schema.mix import CACHE_K, CACHE_V
from exltune.schema.search import ScoredMix
from exltune.search import OF_BASELINE, History, open_storage
from exltune.search.loop.history import mix_key, storage_errors
from exltune.search.loop.ledger import Ledger


def _mix(bits: str, rows: tuple[float, ...], source: str = "thompson", **more: str) -> ScoredMix:
    return ScoredMix(source=source, choices={"0.attn.q": bits, "head": "6", **more}, size_bytes=10, kld_rows=rows)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.mark.slow
def test_what_was_added_is_there_when_it_is_opened_again(url: str) -> None:
    History(open_storage(url), "key").add([_mix("2", (0.1, 0.2)), _mix("3", (0.05,), OF_BASELINE + "uniform")])
    again = History(open_storage(url), "key")
    assert again.get({"0.attn.q": "2", "head": "6"}) == _mix("2", (0.1, 0.2))
    assert again.get({"0.attn.q": "3", "head": "6"}) == _mix("3", (0.05,), OF_BASELINE + "uniform")
    assert again.get({"0.attn.q": "4", "head": "6"}) is None
    assert History(open_storage(url), "another key").mixes == {}


def test_the_longest_score_of_a_mix_counts(url: str) -> None:
    history = History(open_storage(url), "key")
    for rows in ((0.1, 0.2), (0.1, 0.2, 0.3, 0.4), (0.1,)):
        history.add([_mix("2", rows)])
    for one in (history, History(open_storage(url), "key")):
        assert [mix.kld_rows for mix in one.mixes.values()] == [(0.1, 0.2, 0.3, 0.4)]
        assert one.whole({"0.attn.q": "2", "head": "6"}, 4)
        assert not one.whole({"0.attn.q": "2", "head": "6"}, 5)
        assert one.passes(4) == 1.0


def test_seeds_cost_no_passes(url: str) -> None:
    history = History(open_storage(url), "key")
    history.add([_mix("2", (0.1,) * 8, OF_BASELINE + "uniform"), _mix("3", (0.1,) * 8), _mix("4", (0.1,) * 4)])
    assert history.passes(8) == 1.5


def test_two_workers_see_each_others_mixes(url: str) -> None:
    one, other = (History(open_storage(url), "key") for _ in range(2))
    one.add([_mix("2", (0.1,))])
    other.add([_mix("3", (0.2,))])
    assert (len(one.mixes), len(other.mixes)) == (1, 1)
    one.refresh()
    other.refresh()
    assert one.mixes == other.mixes
    assert len(one.mixes) == 2


_WORKER = """
import sys
from exltune.schema.search import ScoredMix
from exltune.search import History, open_storage
history = History(open_storage(sys.argv[1]), "key")
for number in range(10):
    choices = {"0.attn.q": sys.argv[2], "0.attn.o": str(number)}
    history.add([ScoredMix(source="s", choices=choices, size_bytes=1, kld_rows=(0.1,))])
"""


@pytest.mark.slow
def test_processes_share_a_file_that_none_of_them_has_made(url: str) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, url, name], stderr=subprocess.PIPE, text=True)
        for name in ("2", "3")
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=240)
        assert worker.returncode == 0, stderr
    assert len(History(open_storage(url), "key").mixes) == 20


def test_an_unquantized_cache_is_no_cache() -> None:
    plain = {"0.attn.q": "2", "head": "6"}
    assert mix_key(plain) == mix_key(plain | {CACHE_K: "16", CACHE_V: "16"}) == mix_key(dict(reversed(plain.items())))
    assert mix_key(plain) != mix_key(plain | {CACHE_K: "16", CACHE_V: "8"})
    # 16 bits of anything else is the reference, not nothing.
    assert mix_key(plain | {"0.attn.q": "16"}) != mix_key({"head": "6"})


@pytest.mark.parametrize("url", ["search.db", "nonsense://somewhere/x", "postgresql://localhost/search"])
def test_urls_that_name_no_storage(url: str) -> None:
    with pytest.raises(UsageError, match="names no storage") as error:
        open_storage(url)
    assert "sqlite:///search.db" in str(error.value)


def test_storages_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open"):
        open_storage(f"sqlite:///{tmp_path / 'absent' / 'search.db'}")
    (tmp_path / "text").write_text("no database, but as long as the header of one" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_storage(f"sqlite:///{tmp_path / 'text'}")


def test_a_storage_that_fails_later_is_told_as_one(url: str) -> None:
    history = History(open_storage(url), "key")
    Path(url.removeprefix("sqlite:///")).write_text("overwritten" * 2000)
    with pytest.raises(StorageError, match="storage fails") as error, storage_errors(url):
        history.add([_mix("2", (0.1,))])
    assert url in str(error.value)


def test_missing_rows_are_filled_in_by_how_hard_they_were_for_another_mix() -> None:
    history = History(open_storage(None), "key")
    ledger = Ledger(history, 4)
    half, whole = _mix("2", (0.2, 0.4)), _mix("3", (1.0, 2.0, 4.0, 5.0))
    history.add([half])
    # Nothing to go by yet: its own mean.
    assert ledger.kld(half.choices) == pytest.approx(0.3)
    history.add([whole])
    assert ledger.kld(half.choices) == pytest.approx(0.3 * 3.0 / 1.5)
    assert ledger.kld(whole.choices) == pytest.approx(3.0)
    assert ledger.first_rung(whole.choices) == pytest.approx(1.5)
    assert ledger.rows_of(half.choices) is None
    assert ledger.rows_of(whole.choices) == pytest.approx([1.0, 2.0, 4.0, 5.0])
    assert ledger.kld({"head": "6"}) is None
    assert (ledger.known(half.choices), ledger.known(half.choices, 4)) == (True, False)
    assert (Ledger(history, 5).half, Ledger(history, 1).half) == (3, 1)


def test_dropped_mixes_are_known_and_cost_what_they_cost() -> None:
    ledger = Ledger(History(open_storage(None), "key"), 4)
    choices = {"0.attn.q": "2", "head": "6"}
    assert not ledger.known(choices)
    ledger.drop(choices, 2)
    ledger.drop(choices, 2)
    assert ledger.known(choices)
    assert ledger.kld(choices) is None
    assert ledger.passes == 0.5

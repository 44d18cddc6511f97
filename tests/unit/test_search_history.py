"""Scored mixes in a storage: durable, shared, and read as numbers on equal rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError

from exltune.errors import StorageError, UsageError
from exltune.schema.mix import CACHE_K, CACHE_V, mix_key
from exltune.schema.search import ScoredMix
from exltune.search import OF_BASELINE, History, knob_study, open_storage, sampler, storage_errors
from exltune.search.loop.ledger import Ledger


def _mix(bits: str, rows: tuple[float, ...], source: str = "thompson", **more: str) -> ScoredMix:
    return ScoredMix(source=source, choices={"0.attn.q": bits, "head": "6", **more}, size_bytes=10, kld_rows=rows)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.mark.slow
def test_the_longest_score_of_a_mix_counts() -> None:
    history = History()
    for rows in ((0.1, 0.2), (0.1, 0.2, 0.3, 0.4), (0.1,)):
        history.add([_mix("2", rows)])
    assert [mix.kld_rows for mix in history.mixes.values()] == [(0.1, 0.2, 0.3, 0.4)]
    assert history.get({"0.attn.q": "2", "head": "6"}) == _mix("2", (0.1, 0.2, 0.3, 0.4))
    assert history.get({"0.attn.q": "4", "head": "6"}) is None
    assert history.passes(4) == 1.0


def test_baselines_cost_no_passes() -> None:
    history = History()
    history.add([_mix("2", (0.1,) * 8, OF_BASELINE + "uniform"), _mix("3", (0.1,) * 8), _mix("4", (0.1,) * 4)])
    assert history.passes(8) == 1.5


def test_a_study_that_an_earlier_run_left_is_begun_anew(url: str) -> None:
    for _ in range(2):
        study = knob_study(open_storage(url), "key", sampler("tpe", 0), objectives=1)
        assert study.trials == []
        study.ask()
    other = knob_study(open_storage(url), "another key", sampler("tpe", 0), objectives=1)
    assert sorted(one.study_name for one in open_storage(url).get_all_studies()) == [
        "exltune another key knobs",
        "exltune key knobs",
    ]
    assert other.trials == []


_WORKER = """
import sys
from exltune.search import knob_study, open_storage, sampler
for number in range(3):
    study = knob_study(open_storage(sys.argv[1]), f"{sys.argv[2]} {number}", sampler("random", 0), objectives=1)
    study.tell(study.ask(), 0.5)
"""


def test_processes_share_a_file_that_none_of_them_has_made(url: str) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, url, name], stderr=subprocess.PIPE, text=True)
        for name in ("2", "3")
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=240)
        assert worker.returncode == 0, stderr
    assert len(open_storage(url).get_all_studies()) == 6


def test_an_unquantized_cache_is_no_cache() -> None:
    plain = {"0.attn.q": "2", "head": "6"}
    assert mix_key(plain) == mix_key(plain | {CACHE_K: "16", CACHE_V: "16"}) == mix_key(dict(reversed(plain.items())))
    assert mix_key(plain) != mix_key(plain | {CACHE_K: "16", CACHE_V: "8"})
    # 16 bits of anything else is the reference, not nothing.
    assert mix_key(plain | {"0.attn.q": "16"}) != mix_key({"head": "6"})


@pytest.mark.parametrize("url", ["search.db", "nonsense://somewhere/x", "postgresql+nodriver://localhost/search"])
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
    study = knob_study(open_storage(url), "key", sampler("random", 0), objectives=1)
    Path(url.removeprefix("sqlite:///")).write_text("overwritten" * 2000)
    with pytest.raises(StorageError, match="storage fails") as error, storage_errors(url):
        study.ask()
    assert url in str(error.value)


def test_no_password_is_shown() -> None:
    url = "postgresql://user:secret@host/search"
    with pytest.raises(StorageError, match="storage fails") as error, storage_errors(url):
        raise StorageInternalError("gone")
    assert "user:***@host" in str(error.value)


def test_missing_rows_are_filled_in_by_how_hard_they_were_for_another_mix() -> None:
    history = History()
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
    ledger = Ledger(History(), 4)
    choices = {"0.attn.q": "2", "head": "6"}
    assert not ledger.known(choices)
    ledger.drop(choices, 2)
    ledger.drop(choices, 2)
    assert ledger.known(choices)
    assert ledger.kld(choices) is None
    assert ledger.passes == 0.5

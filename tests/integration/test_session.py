"""One session: model, quants and texts are read once, and nothing is scored twice, also after a kill."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import contents, exltune, run_until_killed, succeed

from exltune.budget import Limits
from exltune.corpora import dealing
from exltune.corpora.dealing import data_options_of
from exltune.engines.reference.engine import ReferenceEngine
from exltune.errors import QuantMismatchError, UsageError
from exltune.evaluation import whole
from exltune.inventory import content, identity
from exltune.metrics import mean_and_se
from exltune.pipeline.common import session as sessions
from exltune.pipeline.common.session import Session
from exltune.pipeline.evaluation.evaluate import evaluate
from exltune.pipeline.optimization.optimize import OptimizeOptions
from exltune.pipeline.quants.quantize import QuantizeOptions
from exltune.pipeline.tune import tune
from exltune.schema.tokens import DataOptions, Split
from exltune.search import SearchOptions
from exltune.search.space.space import SpaceOptions
from exltune.store.probes import row_ids
from exltune.store.quants import base_quants

ASKED, QUANTS = SpaceOptions(Limits(target_bpw=3.7)), QuantizeOptions((3, 4))
SEARCH = OptimizeOptions(SearchOptions(passes=4))
#: As the command line says it.
WORDS = ("--bits", "3,4", "--head-bits", "6", "--target-bpw", "3.7", "--passes", "4")


@pytest.fixture(scope="module")
def texts(data: list[str]) -> DataOptions:
    files = data[1 : data.index("--rows")]
    return data_options_of([word for word in files if word != "--data"], rows=32, row_length=32)


class Counts:
    """How often each of some functions was called, by what it was called with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.calls = patch, Counter[tuple[str, str]]()

    def watch(self, owner: Any, name: str, what: Callable[..., str] = lambda *_, **__: "") -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name, what(*args, **kwargs)] += 1
            return original(*args, **kwargs)

        self.patch.setattr(owner, name, counted)


def test_a_tune_reads_everything_once_and_scores_nothing_twice(
    moe_model: Path, texts: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, scored = Counts(monkeypatch), Counter[tuple[str, bytes]]()
    counts.watch(sessions, "open_engine")
    counts.watch(dealing, "read_samples")
    counts.watch(identity, "_add_file", lambda digest, file: str(file))
    counts.watch(content, "_tensor_hashes", lambda files, names: str(files.path))
    counts.watch(base_quants, "check_same_model", lambda model, quant: str(quant))
    session = Session(moe_model, texts)
    score = ReferenceEngine.score

    def noted(self: ReferenceEngine, mixes: Sequence[Any], tokens: torch.Tensor, progress: Any = None) -> Any:
        keys = [session.scores.key(mix) for mix in mixes]
        scored.update((key, row) for key in keys for row in row_ids(tokens.numpy()))
        return score(self, mixes, tokens, progress)

    monkeypatch.setattr(ReferenceEngine, "score", noted)
    with session:
        tune(session, tmp_path / "out", ASKED, QUANTS, search=SEARCH)
    assert counts.calls["open_engine", ""] == 1
    assert counts.calls["read_samples", ""] == 1
    kinds = {name for name, _ in counts.calls}
    assert {"_add_file", "_tensor_hashes", "check_same_model"} <= kinds
    assert [call for call, times in counts.calls.items() if times > 1] == []
    assert scored
    assert [pair for pair, times in scored.items() if times > 1] == []


def test_a_session_opens_nothing_until_it_is_asked(tmp_path: Path) -> None:
    with Session(tmp_path / "nothing") as session:
        assert session.reporter is not None
        with pytest.raises(UsageError, match="needs texts"):
            _ = session.token_sets
        with pytest.raises(UsageError, match="needs base quants"):
            _ = session.base_quants


def test_quants_and_scores_do_not_move_once_they_are_open(moe_model: Path, quants: Path, tmp_path: Path) -> None:
    with Session(moe_model, quants=quants) as session:
        assert len(session.base_quants) == 3
        with pytest.raises(UsageError, match="has opened other base quants"):
            session.use(quants=tmp_path, store=tmp_path / "scores.db")


#: Where a tune dies, how often that place is passed before, and whether all scores are there by then.
PLACES = {
    "between the search and judging": ("exltune.pipeline.optimization.optimize:distinct_candidates", 1),
    "as judging is kept": ("exltune.pipeline.optimization.optimize:rank_by_scores", 1),
    "in the first rung": ("exltune.store.probes:ProbeStore.add", 5),
    "as the recipe is written": ("exltune.pipeline.optimization.optimize:write_recipe", 1),
    "after the verdict's scores": ("exltune.pipeline.evaluation.verdict:paired_difference", 1),
}


@pytest.fixture(scope="module")
def uninterrupted(moe_model: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    succeed("tune", moe_model, "--out", out, *WORDS, *data)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_tune_ends_as_if_nothing_had_happened(
    uninterrupted: Path, moe_model: Path, data: list[str], tmp_path: Path, place: str
) -> None:
    out = tmp_path / "out"
    arguments = ("tune", moe_model, "--out", out, *WORDS, *data)
    run_until_killed(*PLACES[place], *arguments)
    assert not (out / "verdict.json").exists()
    assert exltune(*arguments).code == 0
    # Databases hold times; paths differ by the folder alone.
    made, whole = (
        {
            name: (folder / name).read_text().replace(str(folder), "OUT")
            for name in contents(folder)
            if name.endswith((".json", ".yaml")) and not name.startswith("quants")
        }
        for folder in (out, uninterrupted)
    )
    assert made == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ("MODEL", "A", "B")),
        ("compare", ("A", "--against", "B", "--reference", "MODEL", "--tolerance", "60%")),
    ],
)
def test_scores_of_judging_outlive_a_kill(
    moe_model: Path, quants: Path, data: list[str], tmp_path: Path, command: str, words: tuple[str, ...]
) -> None:
    places = {"MODEL": moe_model, "A": quants / "3bpw_H6", "B": quants / "4bpw_H6"}
    arguments = (command, *(places.get(word, word) for word in words), "--out", tmp_path / "o.json", *data)
    run_until_killed(f"exltune.pipeline.evaluation.{command}:write_record", 1, *arguments)
    assert (tmp_path / "scores.db").is_file()
    # It would die here if it asked for any score again.
    arm = "exltune.engines.reference.engine:ReferenceEngine.score"
    with pytest.raises(AssertionError):
        run_until_killed(arm, 1, *arguments)
    assert (tmp_path / "o.json").is_file()


def test_a_name_stands_for_the_directory_that_bears_it(
    moe_model: Path, quants: Path, texts: DataOptions, tmp_path: Path
) -> None:
    """Two directories of one name, one of which is that of a base quant's choice, in one session."""
    folders = [tmp_path / name / "4" for name in ("a", "b")]
    for folder, bits in zip(folders, "23", strict=True):
        shutil.copytree(quants / f"{bits}bpw_H6", folder)
    with Session(moe_model, texts, quants=quants, store=tmp_path / "scores.db") as session:
        base = [whole(session.inventory, quant.choice) for quant in session.base_quants]
        expected = session.scores.score(base, session.ids(Split.HELD_OUT))
        found = [evaluate(session, [folder]).rows[0] for folder in folders]
        assert [row.name for row in found] == ["4", "4"]
        kls = [mean_and_se(score.kl_ref_mix, score.positions).mean for score in expected]
        assert [row.kl_ref_quant for row in found] == kls[:2]
        assert session.scores.score(base, session.ids(Split.HELD_OUT)) == expected
        assert session.scores.counts.scored == len(base)


def test_a_quant_that_was_replaced_is_not_taken_for_the_old_one(
    moe_model: Path, quants: Path, texts: DataOptions, tmp_path: Path
) -> None:
    out = tmp_path / "quant"
    shutil.copytree(quants / "2bpw_H6", out)
    with Session(moe_model, texts, store=tmp_path / "scores.db") as session:
        before, first = session.fingerprint(out), evaluate(session, [out]).rows[0]
        shutil.rmtree(out)
        shutil.copytree(quants / "4bpw_H6", out)
        assert session.fingerprint(out) != before
        with pytest.raises(QuantMismatchError, match="replaced since it was first read"):
            evaluate(session, [out])
    with Session(moe_model, texts, store=tmp_path / "scores.db") as session:
        assert evaluate(session, [out]).rows[0].kl_ref_quant < first.kl_ref_quant / 2

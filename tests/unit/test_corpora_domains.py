"""Domains: how the command line names and weighs them, and how their samples are cut and dealt."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_models import chats, words, write_chat_tokenizer, write_jsonl

from exltune.cli import options, repeat_data_option
from exltune.corpora import TokenSet
from exltune.corpora.dealing import data_options_of, data_source, read_samples, token_sets
from exltune.errors import DataError, UsageError
from exltune.pipeline.common.commands import data_words
from exltune.schema.tokens import DataOptions, Split, Texts

ROW = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_tokenizer(tmp_path_factory.mktemp("model"), "chatml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats in a file, texts in another, and two files of code."""
    folder = tmp_path_factory.mktemp("texts")
    write_jsonl(folder / "talk.jsonl", [*chats(60), *({"text": words(60, i)} for i in range(20))])
    (folder / "book.txt").write_text("\n\n".join(words(40, ("book", i)) for i in range(300)))
    (folder / "code").mkdir()
    for name in ("a.py", "b.py"):
        (folder / "code" / name).write_text("\n".join(words(12, (name, i)) for i in range(400)))
    return folder


def settings(folder: Path, *entries: str, **more: object) -> DataOptions:
    placed = [entry.replace("@", f"{folder}/") for entry in entries]
    return data_options_of(placed, **({"rows": 32, "row_length": ROW} | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "domain", "path"),
    [
        ("/a/b.txt", None, "/a/b.txt"),
        ("math=/a/b.txt", "math", "/a/b.txt"),
        ("science-2.1=/a/b=c.txt", "science-2.1", "/a/b=c.txt"),
        ("/a/x=y.txt", None, "/a/x=y.txt"),
        (Path("/a=b.txt"), None, "/a=b.txt"),
        ("bundled", None, "bundled"),
        ("wiki=bundled", "wiki", "bundled"),
    ],
)
def test_entries(entry: str | Path, domain: str | None, path: str) -> None:
    assert (data_source(entry).domain, data_source(entry).path) == (domain, path)


def test_several_files_after_one_option_may_have_domains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    given = ["tune", "m", "--data", "book.txt", "chat=talk.jsonl", "code/a.py", "--rows", "9", "book.txt"]
    expected = ["tune", "m", "--data", "book.txt", "--data", "chat=talk.jsonl", "--data", "code/a.py"]
    assert repeat_data_option(given) == [*expected, "--rows", "9", "book.txt"]


def test_domains_come_from_the_options_or_from_the_files(folder: Path, model: Path) -> None:
    def domains(*entries: str) -> list[str]:
        return list(dict.fromkeys(sample.domain for sample in read_samples(settings(folder, *entries), model)))

    assert domains("@talk.jsonl", "@code") == ["talk", "a", "b"]
    assert domains("chat=@talk.jsonl", "code=@code", "@book.txt") == ["chat", "code", "book"]
    assert domains("all=@talk.jsonl", "all=@book.txt") == ["all"]
    assert {"c4", "code", "wiki", "mine"} <= set(domains("bundled", "mine=@book.txt"))


def test_weights_are_the_domains_shares_of_every_set(folder: Path, model: Path) -> None:
    entries = ("chat=@talk.jsonl", "code=@code", "@book.txt")
    asked = settings(folder, *entries, weights={"chat": 2, "code": 0.5, "book": 1.5}, rows=64, row_length=16)
    for token_set in token_sets(asked, model).values():
        rows = token_set.info.rows
        assert token_set.info.domains == {"chat": rows // 2, "code": rows // 8, "book": rows * 3 // 8}


def test_fewer_samples_leave_the_others_where_they_are(folder: Path, model: Path) -> None:
    path = write_jsonl(folder / "texts.jsonl", [{"text": words(60, ("text", i))} for i in range(80)])
    all_of_them = token_sets(settings(folder, str(path), rows=64), model)
    fewer = token_sets(settings(folder, str(path), rows=64, samples=40), model)
    others = token_sets(settings(folder, str(path), rows=64, samples=40, seed=5), model)
    assert fewer[Split.SEARCH].info.sha256 != others[Split.SEARCH].info.sha256
    grams = {split: grams_of(token_set) for split, token_set in all_of_them.items()}
    for sets in (fewer, others):
        for split, token_set in sets.items():
            assert grams_of(token_set) & grams[split]
            assert not any(grams_of(token_set) & grams[other] for other in set(Split) - {split})


def grams_of(token_set: TokenSet) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + 13]) for row in token_set.ids.tolist() for i in range(len(row) - 12)}


def test_samples_are_cut_after_so_many_tokens(folder: Path, model: Path) -> None:
    long = write_jsonl(folder / "long.jsonl", [{"text": words(400, ("long", i))} for i in range(40)])
    whole = token_sets(settings(folder, str(long), rows=64), model)
    assert sum(s.info.rows for s in whole.values()) == 64
    with pytest.raises(DataError, match=f"hold {40 * ROW} tokens, which give 40 of the 64 rows"):
        token_sets(settings(folder, str(long), rows=64, sample_tokens=ROW), model)


def test_short_chats_are_packed_within_their_domain(folder: Path, model: Path) -> None:
    asked = settings(folder, "@talk.jsonl", "@book.txt", rows=16, row_length=300)
    for token_set in token_sets(asked, model).values():
        assert set(token_set.domains) == {"talk", "book"}


def test_a_domain_that_was_asked_for_and_gives_nothing_is_named(folder: Path, model: Path) -> None:
    few = write_jsonl(folder / "few.jsonl", [{"text": "only a few words"}])
    with pytest.raises(DataError, match=r"domain 'math' gives none of the rows of 32 tokens: its texts hold \d+ "):
        token_sets(settings(folder, "@book.txt", f"math={few}"), model)
    # A small file among others that was not asked for by name is no reason to stop.
    assert "few" not in token_sets(settings(folder, "@book.txt", str(few)), model)[Split.SEARCH].info.domains


def test_a_weight_of_a_domain_that_is_not_there_is_named(folder: Path, model: Path) -> None:
    with pytest.raises(DataError, match=r"no domain 'maths' to give a weight to\. The domains are: math, book"):
        token_sets(settings(folder, "math=@code", "@book.txt", weights={"maths": 2}), model)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("math=0", "weight of 'math' is 0"),
        ("math=-1", "weight of 'math' is -1"),
        ("math=inf", "is inf"),
        ("math=nan", "is nan"),
        ("math=two", "is not a number: 'two'"),
        ("math", "names no domain"),
        ("=2", "names no domain"),
        ("math=1,math=2", "'math' twice"),
    ],
)
def test_bad_weights(text: str, fragment: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.parse_weights(text)
    assert fragment in str(caught.value)


def test_weights_are_read() -> None:
    assert options.parse_weights("math=2, a.b-c=0.5,") == {"math": 2.0, "a.b-c": 0.5}
    assert options.parse_weights(None) == {}


@pytest.mark.parametrize("published", [False, True])
def test_settings_give_the_options_that_give_the_settings(folder: Path, published: bool) -> None:
    asked = settings(folder, "math=@talk.jsonl", "@book.txt", "bundled", weights={"math": 2.5}, samples=9, seed=3)
    words = data_words(asked, published=published)
    values: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(option, []).append(value)
    if published:
        assert values["--data"] == ["math=talk.jsonl", "book.txt", "bundled"]
        return
    again = options.DataFlags(
        data=values["--data"],
        weights=values["--weights"][0],
        samples=int(values["--samples"][0]),
        rows=int(values["--rows"][0]),
        row_length=int(values["--row-length"][0]),
        seed=int(values["--seed"][0]),
    ).options()
    assert again == asked
    assert hash(again) == hash(asked)
    assert DataOptions.model_validate_json(asked.model_dump_json()) == asked


def test_without_files_the_bundled_texts_are_taken(model: Path) -> None:
    found = token_sets(data_options_of([], rows=16, row_length=ROW, weights={"wiki": 5}), model)
    assert data_options_of([], rows=16, row_length=ROW).texts is Texts.BUNDLED
    assert found[Split.HELD_OUT].info.domains["wiki"] == 3

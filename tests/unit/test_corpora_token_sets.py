"""Token sets: disjoint, deterministic, interleaved by domain, and honest about too little text."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from exltune.corpora import Document, TokenSet, make_token_sets
from exltune.corpora.overlap import OverlapIndex, ngram_hashes
from exltune.errors import DataError
from exltune.schema.tokens import Split

ROW = 80
ROWS = {Split.CALIBRATION: 6, Split.SEARCH: 6, Split.SELECTION: 3, Split.HELD_OUT: 9}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a word: w0 .. w999."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def words(count: int, seed: object) -> str:
    generator = random.Random(str(seed))
    return " ".join(f"w{generator.randrange(1000)}" for _ in range(count))


def make_documents(domain: str, count: int, length: int) -> list[Document]:
    return [Document(domain=domain, text=words(length, (domain, i)), id=f"{domain}/{i}") for i in range(count)]


def deal(documents: list[Document], folder: Path, seed: int = 0, **options: object) -> dict[Split, TokenSet]:
    return make_token_sets(documents, folder, ROW, ROWS, seed, **options)  # type: ignore[arg-type]


def test_the_sets_have_the_rows_asked_for_and_share_no_document(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 20, 2 * ROW + 17) + make_documents("b", 20, 2 * ROW)
    sets = deal(documents, tokenizer_dir)
    assert {split: s.ids.shape for split, s in sets.items()} == {split: (n, ROW) for split, n in ROWS.items()}
    owner = {tuple(row[:5]): split for split, s in sets.items() for row in s.ids.tolist()}
    assert len(owner) == sum(ROWS.values())
    for document in documents:
        ids = [int(word[1:]) for word in document.text.split()]
        starts = (tuple(ids[i : i + 5]) for i in range(0, len(ids), ROW))
        assert len({owner[start] for start in starts if start in owner}) <= 1


def test_the_same_arguments_give_the_same_hash_and_another_seed_another(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 30, ROW)
    first, again, other = (deal(documents, tokenizer_dir, seed) for seed in (0, 0, 1))
    for split in Split:
        assert first[split].info == again[split].info
        assert first[split].info.sha256 != other[split].info.sha256
    assert len({s.info.sha256 for s in first.values()}) == 4


def test_rows_are_whole_and_never_mix_long_documents(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 30, ROW + ROW // 2)
    texts = {document.text for document in documents}
    for token_set in deal(documents, tokenizer_dir).values():
        for row in token_set.ids:
            text = " ".join(f"w{i}" for i in row)
            assert any(whole.startswith(text) for whole in texts)


def test_short_documents_are_packed_within_their_domain(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 60, 50) + make_documents("b", 60, 30)
    text_of = {d: " ".join(x.text for x in documents if x.domain == d).split() for d in ("a", "b")}
    for token_set in deal(documents, tokenizer_dir, shares={"a": 3, "b": 1}).values():
        for domain, row in zip(token_set.domains, token_set.ids, strict=True):
            assert {f"w{i}" for i in row} <= set(text_of[domain])


def test_domains_have_their_shares_and_are_interleaved(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 40, ROW) + make_documents("b", 40, ROW)
    held_out = deal(documents, tokenizer_dir, shares={"a": 0.75, "b": 0.25})[Split.HELD_OUT]
    assert held_out.info.domains == {"a": 7, "b": 2}
    assert held_out.domains[:4].count("b") == 1
    assert held_out.domains[4:].count("b") == 1


def test_a_domain_that_runs_short_leaves_its_place_to_others(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 3, ROW) + make_documents("b", 40, ROW)
    sets = deal(documents, tokenizer_dir)
    assert sum(s.info.domains.get("a", 0) for s in sets.values()) == 3
    assert sum(s.info.rows for s in sets.values()) == sum(ROWS.values())


def test_a_planted_duplicate_is_rejected(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 32, ROW)
    copies = [Document(domain="a", text=d.text, id=f"copy/{d.id}") for d in documents[:8]]
    sets = deal(documents + copies, tokenizer_dir)
    assert sum(s.info.rows_rejected for s in sets.values()) > 0
    for split, token_set in sets.items():
        others = {tuple(r) for other, s in sets.items() if other is not split for r in s.ids.tolist()}
        assert not others & {tuple(r) for r in token_set.ids.tolist()}
        assert token_set.info.overlap == 0.0


def test_a_little_shared_text_is_kept_and_reported(tokenizer_dir: Path) -> None:
    common = words(16, "common")
    documents = [
        Document(domain="a", text=f"{common} {words(ROW - 16, i)}", id=str(i)) for i in range(sum(ROWS.values()))
    ]
    sets = deal(documents, tokenizer_dir)
    assert all(s.info.rows_rejected == 0 for s in sets.values())
    # 4 of the 68 13-grams of every row stand in every set.
    assert all(s.info.overlap == pytest.approx(4 / 68) for s in sets.values())


@pytest.mark.parametrize(("shared", "accepted"), [(24, True), (25, False)])
def test_a_fifth_of_the_13_grams_is_too_much(shared: int, accepted: bool) -> None:
    row = np.arange(77)  # 65 13-grams; 25 equal tokens share 13 of them, a fifth
    other = np.concatenate([row[:shared], 1000 + np.arange(77 - shared)])
    index = OverlapIndex()
    index.add(row, Split.SEARCH)
    assert index.accepts(other, Split.HELD_OUT) is accepted
    assert index.accepts(other, Split.SEARCH)


def test_one_64_gram_is_too_much_in_a_long_row() -> None:
    row = np.arange(1000)
    index = OverlapIndex()
    index.add(row, Split.CALIBRATION)
    for length, accepted in ((63, True), (64, False)):
        other = np.concatenate([5000 + np.arange(1000 - length), row[100 : 100 + length]])
        assert index.accepts(other, Split.HELD_OUT) is accepted


def test_hashes_are_equal_where_the_ngrams_are() -> None:
    row = np.array([1, 2, 3, 1, 2, 3, 1, 2])
    grams = [tuple(row[i : i + 3]) for i in range(6)]
    hashes = ngram_hashes(row, 3)
    for i in range(6):
        for j in range(6):
            assert (hashes[i] == hashes[j]) == (grams[i] == grams[j])
    assert ngram_hashes(row, 9) == []


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed(tokenizer_dir: Path) -> None:
    with pytest.raises(DataError, match=rf"hold {10 * ROW} tokens, which give 10 of the 24 rows of {ROW} tokens"):
        deal(make_documents("a", 10, ROW), tokenizer_dir)


def test_no_documents_is_too_little_text(tokenizer_dir: Path) -> None:
    with pytest.raises(DataError, match="hold 0 tokens"):
        deal([], tokenizer_dir)


def test_a_model_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        deal(make_documents("a", 10, ROW), tmp_path)


@pytest.mark.parametrize(
    ("row_length", "factor", "seed"), [(ROW, 2, 0), (ROW // 2, 1, 0), (ROW, 1, 7), (ROW // 2, 4, 3)]
)
def test_other_settings_never_move_text_to_another_set(
    tokenizer_dir: Path, row_length: int, factor: int, seed: int
) -> None:
    documents = make_documents("a", 48, 2 * ROW) + make_documents("b", 48, 3 * ROW + 7)
    rows = {split: factor * count for split, count in ROWS.items()}
    first = deal(documents, tokenizer_dir)
    other = make_token_sets(documents, tokenizer_dir, row_length, rows, seed)
    for split in Split:
        seen = {tuple(row[i : i + 13]) for row in first[split].ids.tolist() for i in range(ROW - 12)}
        for strange in set(Split) - {split}:
            assert not any(
                tuple(row[i : i + 13]) in seen for row in other[strange].ids.tolist() for i in range(row_length - 12)
            )


def test_rows_come_from_as_many_documents_as_there_are(tokenizer_dir: Path) -> None:
    documents = make_documents("a", 24, 5 * ROW)
    first_words = {document.text.split()[0] for document in documents}
    held_out = deal(documents, tokenizer_dir)[Split.HELD_OUT]
    assert sum(f"w{row[0]}" in first_words for row in held_out.ids) >= 9

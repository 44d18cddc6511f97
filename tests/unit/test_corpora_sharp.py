"""The texts of the project's own small models: disjoint uses, exact recall rows, enough for the demo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from exltune.corpora import Document, make_token_sets, read_texts, small_model_documents
from exltune.corpora.sharp import ROW_LENGTH, SHARES, Use, bundled_pieces, memorised_documents, unseen_documents
from exltune.corpora.tokenizer import load_tokenizer
from exltune.schema.tokens import Split

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[2] / "models" / "glm4moe"
DEMO_ROWS = {Split.CALIBRATION: 96, Split.SEARCH: 96, Split.SELECTION: 64, Split.HELD_OUT: 192}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return small_model_documents(MODEL)


def test_every_piece_has_one_use_and_every_file_has_all_uses() -> None:
    pieces = {use: bundled_pieces(use) for use in Use}
    ids = [piece.id for members in pieces.values() for piece in members]
    assert len(ids) == len(set(ids)) == len(read_texts(None, piece_characters=2048))
    assert all(len({piece.domain for piece in members}) == 6 for members in pieces.values())


def test_memorised_text_is_trained_on_and_unseen_text_is_not() -> None:
    trained = {piece.text for piece in bundled_pieces(Use.TRAIN)}
    assert {d.text for d in memorised_documents()} <= trained
    assert not {d.text for d in unseen_documents()} & trained


def test_recall_rows_are_a_segment_twice_from_text_never_trained_on(documents: list[Document]) -> None:
    tokenizer = load_tokenizer(MODEL)
    sources = "".join(piece.text for piece in bundled_pieces(Use.RECALL))
    recall = [d for d in documents if d.domain == "recall"]
    assert len(recall) >= 300
    for document in recall:
        ids = tokenizer.encode(document.text).ids
        assert len(ids) == ROW_LENGTH
        assert ids[: ROW_LENGTH // 2] == ids[ROW_LENGTH // 2 :]
    assert all(document.text[: len(document.text) // 2] in sources for document in recall[::20])


def test_documents_are_the_same_every_time(documents: list[Document]) -> None:
    assert small_model_documents(MODEL) == documents
    assert len({d.id for d in documents}) == len(documents)


def test_there_is_enough_for_the_demo_in_the_fixed_shares(documents: list[Document]) -> None:
    sets = make_token_sets(documents, MODEL, ROW_LENGTH, DEMO_ROWS, 0, SHARES)
    for split, token_set in sets.items():
        rows = DEMO_ROWS[split]
        assert Counter(token_set.domains) == {domain: rows * share for domain, share in SHARES.items()}
        assert token_set.info.overlap < 0.02

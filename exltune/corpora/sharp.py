"""The texts of the project's own small models: memorised text, recall tasks, and unseen text.

The models are sharp on memorised text and on repeated segments, as large models are on most text; a barely
trained small model would lose nothing to quantization. Training script and demo take their texts from here alone,
so that "never trained on" holds by construction. Everything derives from exllamav3's bundled texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from exltune.corpora.documents import Document, read_texts
from exltune.corpora.tokenizer import load_tokenizer

ROW_LENGTH = 128
#: Shares of the rows in every token set.
SHARES = {"memorised": 0.5, "recall": 0.25, "unseen": 0.25}

_PIECE_CHARACTERS = 2048
#: Files are dealt in blocks of this many neighbouring pieces: a document at most straddles one border.
_BLOCK_PIECES = 16
_MEMORISED_PIECES_PER_FILE = 14
_UNSEEN_PIECES_PER_FILE = 16
_RECALL_DOCUMENTS = 360
_SEED = 1302


class Use(StrEnum):
    """The use of a piece of the bundled texts."""

    TRAIN = "train"
    RECALL = "recall"
    UNSEEN = "unseen"


_BLOCK_USES = (Use.TRAIN, Use.TRAIN, Use.RECALL, Use.UNSEEN)


def bundled_pieces(use: Use) -> list[Document]:
    """All pieces of the bundled texts that have a use, in file order; the uses share no text."""
    position: dict[str, int] = {}
    chosen = []
    for document in read_texts(None, piece_characters=_PIECE_CHARACTERS):
        index = position.setdefault(document.domain, 0)
        position[document.domain] += 1
        if _BLOCK_USES[index // _BLOCK_PIECES % len(_BLOCK_USES)] is use:
            chosen.append(document)
    return chosen


def memorised_documents() -> list[Document]:
    """The fixed list of pieces, the same number from every file, that training repeats until they are memorised."""
    return _as_domain("memorised", _spread(bundled_pieces(Use.TRAIN), _MEMORISED_PIECES_PER_FILE))


def unseen_documents() -> list[Document]:
    """Pieces that no small model was trained on, the same number from every file."""
    return _as_domain("unseen", _spread(bundled_pieces(Use.UNSEEN), _UNSEEN_PIECES_PER_FILE))


def recall_documents(tokenizer_dir: Path | str, row_length: int = ROW_LENGTH) -> list[Document]:
    """Documents of exactly `row_length` tokens, a segment never trained on and then the same segment again."""
    tokenizer = load_tokenizer(tokenizer_dir)
    generator = random.Random(_SEED)
    half = row_length // 2
    sources = bundled_pieces(Use.RECALL)
    generator.shuffle(sources)
    documents: list[Document] = []
    for source in sources:
        ids = tokenizer.encode(source.text, add_special_tokens=False).ids
        if len(documents) == _RECALL_DOCUMENTS or len(ids) < half:
            continue
        start = generator.randrange(len(ids) - half + 1)
        segment = ids[start : start + half]
        text = tokenizer.decode(segment + segment, skip_special_tokens=False)
        # Cut inside a word or a character, the text would come back as other tokens.
        if tokenizer.encode(text, add_special_tokens=False).ids == segment + segment:
            documents.append(Document(domain="recall", text=text, id=f"recall/{source.id}"))
    return documents


def small_model_documents(tokenizer_dir: Path | str, row_length: int = ROW_LENGTH) -> list[Document]:
    """Documents of the domains memorised, recall and unseen; deal them with `shares=SHARES`."""
    return memorised_documents() + recall_documents(tokenizer_dir, row_length) + unseen_documents()


def _spread(documents: Sequence[Document], per_domain: int) -> list[Document]:
    """`per_domain` documents of every domain at even distances; all of them where there are fewer."""
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    chosen = []
    for members in by_domain.values():
        count = min(per_domain, len(members))
        chosen += [members[i * len(members) // count] for i in range(count)]
    return chosen


def _as_domain(domain: str, documents: Sequence[Document]) -> list[Document]:
    return [Document(domain=domain, text=d.text, id=f"{domain}/{d.id}") for d in documents]

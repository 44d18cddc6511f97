"""Deal documents to disjoint token sets, so that nothing is chosen by the text that it is judged on."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from exltune.corpora.documents import Document
from exltune.corpora.overlap import OverlapIndex
from exltune.corpora.tokenizer import load_tokenizer
from exltune.errors import DataError
from exltune.schema.tokens import Split, TokenSetInfo

Row = NDArray[np.int64]


@dataclass(frozen=True)
class TokenSet:
    """Token ids (rows, row_length) int64 of one set, the domain of each row, and their record."""

    info: TokenSetInfo
    ids: NDArray[np.int64]
    domains: tuple[str, ...]


def make_token_sets(
    documents: Sequence[Document],
    tokenizer_dir: Path | str,
    row_length: int,
    rows: Mapping[Split, int],
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> dict[Split, TokenSet]:
    """Cut documents into rows and deal them to disjoint sets of `rows[split]` rows each, interleaved by domain.

    A document goes to one set. Documents of at least `row_length` tokens are cut into rows and lose their last,
    incomplete row; shorter ones are packed together within their domain. `shares` are the domains' shares of every
    set, by default equal ones; where a domain runs short the others fill its place. A row is rejected where 20 % of
    its 13-grams, or any 64-gram, stand in another set. The same arguments give the same sets.

    Raises: DataError where the documents hold too few tokens.
    """
    queues = _shuffled(documents, seed)
    weights = {domain: 1.0 if shares is None else shares.get(domain, 0.0) for domain in queues}
    dealer = _Dealer(load_tokenizer(tokenizer_dir), row_length, rows)
    quotas = {split: _quotas(count, weights) for split, count in rows.items()}
    for domain, queue in queues.items():
        dealer.deal([queue], {split: quota[domain] for split, quota in quotas.items()}, domain)
    dealer.deal(list(queues.values()), rows)
    dealer.check()
    return {split: dealer.token_set(split) for split in rows}


class _Dealer:
    """Rows accepted so far, and what is needed to accept more."""

    def __init__(self, tokenizer: Tokenizer, row_length: int, wanted: Mapping[Split, int]) -> None:
        self._tokenizer = tokenizer
        self._row_length = row_length
        self._wanted = wanted
        self._index = OverlapIndex()
        self._rows: dict[Split, list[tuple[str, Row]]] = {split: [] for split in wanted}
        self._rejected: Counter[Split] = Counter()
        self._unfinished: dict[tuple[Split, str], list[int]] = {}
        self._tokens = 0

    def deal(self, queues: Sequence[deque[Document]], limits: Mapping[Split, int], domain: str | None = None) -> None:
        """Deal documents, one of each queue in turn, until every set has its limit of rows (of a domain, or of all)."""
        while any(queues):
            for queue in queues:
                counts = {split: self._count(split, domain) for split in limits}
                open_sets = [split for split in limits if counts[split] < limits[split]]
                if not open_sets:
                    return
                if queue:
                    # The set that lacks the largest part of its rows; the larger one where several lack the same.
                    split = min(open_sets, key=lambda s: (counts[s] / limits[s], -limits[s]))
                    self._take(queue.popleft(), split, limits[split] - counts[split])

    def _count(self, split: Split, domain: str | None) -> int:
        return sum(domain in (None, own) for own, _ in self._rows[split])

    def _take(self, document: Document, split: Split, most: int) -> None:
        for row in self._cut(document, split):
            if most == 0:
                return
            if self._index.accepts(row, split):
                self._index.add(row, split)
                self._rows[split].append((document.domain, row))
                most -= 1
            else:
                self._rejected[split] += 1

    def _cut(self, document: Document, split: Split) -> Iterator[Row]:
        ids = self._tokenizer.encode(document.text, add_special_tokens=False).ids
        self._tokens += len(ids)
        if len(ids) < self._row_length:
            ids = self._unfinished.pop((split, document.domain), []) + ids
            whole = len(ids) // self._row_length * self._row_length
            self._unfinished[split, document.domain] = ids[whole:]
        for start in range(0, len(ids) - self._row_length + 1, self._row_length):
            yield np.array(ids[start : start + self._row_length], dtype=np.int64)

    def check(self) -> None:
        """Raise DataError where a set is not full: by then every document was read."""
        got, needed = sum(map(len, self._rows.values())), sum(self._wanted.values())
        if got == needed:
            return
        length = self._row_length
        raise DataError(
            f"the texts hold {self._tokens} tokens, which give {got} of the {needed} rows of {length} tokens needed "
            f"({self._rejected.total()} rows were rejected because other sets hold the same text)",
            fix=f"Give more text ({needed * length} tokens at the least, rows use up whole documents) or ask for less",
        )

    def token_set(self, split: Split) -> TokenSet:
        """The rows of a set with the domains spread evenly over it."""
        rows = _interleaved(self._rows[split])
        ids = np.array([row for _, row in rows], dtype=np.int64).reshape(len(rows), self._row_length)
        domains = tuple(domain for domain, _ in rows)
        overlap = sum(self._index.shared(row, split) for row in ids) / max(1, len(rows))
        info = TokenSetInfo(
            split=split,
            rows=len(rows),
            row_length=self._row_length,
            tokens=ids.size,
            sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            domains=dict(Counter(domains)),
            rows_rejected=self._rejected[split],
            overlap=overlap,
        )
        return TokenSet(info, ids, domains)


def _shuffled(documents: Sequence[Document], seed: int) -> dict[str, deque[Document]]:
    """Documents by domain, in an order that depends on the seed and the domain's own documents alone."""
    queues: dict[str, list[Document]] = {}
    for document in documents:
        queues.setdefault(document.domain, []).append(document)
    for domain, members in queues.items():
        random.Random(f"{seed} {domain}").shuffle(members)
    return {domain: deque(members) for domain, members in queues.items()}


def _quotas(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Shares of `count` rows as whole numbers, by the largest remainders."""
    total = sum(weights.values()) or 1.0
    exact = {domain: count * weight / total for domain, weight in weights.items()}
    quotas = {domain: int(value) for domain, value in exact.items()}
    missing = count - sum(quotas.values())
    for domain in sorted(exact, key=lambda d: quotas[d] - exact[d])[:missing]:
        quotas[domain] += 1
    return quotas


def _interleaved(rows: Sequence[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """Rows ordered so that every stretch of them has the domains in about their shares."""
    totals = Counter(domain for domain, _ in rows)
    seen: Counter[str] = Counter()
    places = []
    for number, (domain, _) in enumerate(rows):
        places.append(((seen[domain] + 0.5) / totals[domain], number))
        seen[domain] += 1
    return [rows[number] for _, number in sorted(places)]

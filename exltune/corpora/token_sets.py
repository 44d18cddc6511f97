"""Deal documents to disjoint token sets, so that nothing is chosen by the text that it is judged on."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exltune.corpora.overlap import OverlapIndex
from exltune.corpora.sample import Sample
from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import DataError
from exltune.schema.tokens import SPLIT_SHARES, Split, TokenSetInfo

Row = NDArray[np.int64]


@dataclass(frozen=True)
class TokenSet:
    """Token ids (rows, row_length) int64 of one set, the domain of each row, and their record."""

    info: TokenSetInfo
    ids: NDArray[np.int64]
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Cuts:
    """The documents left before they are dealt.

    samples: documents taken of each domain, the first of a fixed order; all if None. sample_tokens: tokens after which
    a document is cut. needed: domains that must give a row.
    """

    samples: int | None = None
    sample_tokens: int | None = None
    needed: Collection[str] = ()


def make_token_sets(
    documents: Sequence[Sample],
    tokenizer: ModelTokenizer | Path | str,
    row_length: int,
    rows: Mapping[Split, int],
    seed: int,
    shares: Mapping[str, float] | None = None,
    cuts: Cuts | None = None,
) -> dict[Split, TokenSet]:
    """Cut documents into rows and take `rows[split]` rows for each set, interleaved by domain.

    tokenizer: of a model, or the model's directory.

    Which set a document belongs to follows from the documents alone: other rows, row lengths, seeds or numbers of
    samples never move one from calibration to held-out. The seed orders the documents within a set. Every document
    gives its first row before any gives its second, so that rows are as independent as the texts allow; a last,
    incomplete row is lost. Documents shorter than a row are packed together within their domain. `shares` are the
    domains' shares of every set, by default equal ones; where a domain runs short the others fill its place. A row is
    rejected where 20 % of its 13-grams, or any 64-gram, stand in another set. The same arguments give the same sets.

    Raises: DataError where the documents hold too few tokens, and all that encoding them raises.
    """
    if not isinstance(tokenizer, ModelTokenizer):
        tokenizer = ModelTokenizer(tokenizer)
    domains = list(dict.fromkeys(document.domain for document in documents))
    weights = {domain: 1.0 if shares is None else shares.get(domain, 0.0) for domain in domains}
    dealer = _Dealer(documents, tokenizer, row_length, seed, cuts or Cuts())
    for domain in domains:
        for split, count in rows.items():
            dealer.take(split, [domain], _quotas(count, weights)[domain])
    for split, count in rows.items():
        dealer.take(split, domains, count - len(dealer.rows[split]))
    dealer.check(rows)
    return {split: dealer.token_set(split) for split in rows}


class _Dealer:
    """The documents of every set and domain as streams of rows, and the rows taken from them so far."""

    def __init__(
        self, documents: Sequence[Sample], tokenizer: ModelTokenizer, row_length: int, seed: int, cuts: Cuts
    ) -> None:
        self.rows: dict[Split, list[tuple[str, Row]]] = {split: [] for split in Split}
        self._tokenizer, self._row_length, self._cuts = tokenizer, row_length, cuts
        self._index = OverlapIndex()
        self._rejected: dict[Split, Counter[str]] = {split: Counter() for split in Split}
        self._dealt = _deal(documents, seed, cuts.samples)
        self._streams = {key: self._rows_in_turn(members) for key, members in self._dealt.items()}

    def take(self, split: Split, domains: Sequence[str], count: int) -> None:
        """Take up to `count` rows that other sets do not hold, from the domains in turn."""
        streams = {domain: self._streams[split, domain] for domain in domains if (split, domain) in self._streams}
        while count > 0 and streams:
            for domain, stream in list(streams.items()):
                row = next((row for row in stream if self._accepts(row, split, domain)), None)
                if row is None:
                    del streams[domain]
                elif count > 0:
                    self._index.add(row, split)
                    self.rows[split].append((domain, row))
                    count -= 1
                if count == 0:
                    return

    def _accepts(self, row: Row, split: Split, domain: str) -> bool:
        accepted = self._index.accepts(row, split)
        if not accepted:
            self._rejected[split][domain] += 1
        return accepted

    def _rows_in_turn(self, documents: Sequence[Sample]) -> Iterator[Row]:
        """The first row of every document, then the second rows, and so on; tokenized when first needed."""
        later: deque[deque[Row]] = deque()
        short: list[int] = []
        for document in documents:
            ids: Sequence[int] = self._encode(document)
            if len(ids) < self._row_length:
                short += ids
                ids, short = (short, []) if len(short) >= self._row_length else ([], short)
            rows = deque(self._cut(ids))
            if rows:
                yield rows.popleft()
                later.append(rows)
        while later:
            rows = later.popleft()
            if rows:
                yield rows.popleft()
                later.append(rows)

    def _encode(self, document: Sample) -> Sequence[int]:
        return document.encode(self._tokenizer)[: self._cuts.sample_tokens]

    def _tokens(self, domain: str | None = None) -> int:
        members = (found for (_, name), found in self._dealt.items() if domain in (None, name))
        return sum(len(self._encode(document)) for documents in members for document in documents)

    def _cut(self, ids: Sequence[int]) -> list[Row]:
        starts = range(0, len(ids) - self._row_length + 1, self._row_length)
        return [np.array(ids[start : start + self._row_length], dtype=np.int64) for start in starts]

    def check(self, wanted: Mapping[Split, int]) -> None:
        """Raise DataError where a domain is empty or a set not full: by then every document of that set was read."""
        got, needed = sum(map(len, self.rows.values())), sum(wanted.values())
        if got == needed:
            self._check_domains()
            return
        length, rejected = self._row_length, sum(map(Counter.total, self._rejected.values()))
        raise DataError(
            f"the texts hold {self._tokens()} tokens, which give {got} of the {needed} rows of {length} tokens needed "
            f"({rejected} rows were rejected because other sets hold the same text)",
            fix=f"Give more text ({needed * length} tokens at the least, rows use up whole documents), or ask for less "
            "with `rows` or `row_length`",
        )

    def _check_domains(self) -> None:
        there = {domain for rows in self.rows.values() for domain, _ in rows}
        empty = next((domain for domain in self._cuts.needed if domain not in there), None)
        if empty is not None:
            raise DataError(
                f"the domain {empty!r} gives none of the rows of {self._row_length} tokens: its texts hold "
                f"{self._tokens(empty)} tokens",
                fix="Give it more text or a larger weight, shorten `row_length`, or leave the domain out",
            )

    def token_set(self, split: Split) -> TokenSet:
        """The rows of a set with the domains spread evenly over it."""
        rows = _interleaved(self.rows[split])
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
            rejected=dict(self._rejected[split]),
            overlap=overlap,
        )
        return TokenSet(info, ids, domains)


def _deal(documents: Sequence[Sample], seed: int, samples: int | None) -> dict[tuple[Split, str], list[Sample]]:
    """Documents by set and domain; the set depends on the documents of the domain alone, the order on the seed too.

    Dealt one after the other in an order of their own: a smaller number of samples leaves the others where they are.
    """
    by_domain: dict[str, list[Sample]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    dealt: dict[tuple[Split, str], list[Sample]] = {}
    for domain, members in by_domain.items():
        random.Random(domain).shuffle(members)
        for document in members[:samples]:
            split = min(SPLIT_SHARES, key=lambda s: (len(dealt.get((s, domain), ())) + 0.5) / SPLIT_SHARES[s])
            dealt.setdefault((split, domain), []).append(document)
    for (split, domain), members in dealt.items():
        random.Random(f"{seed} {split} {domain}").shuffle(members)
    return dealt


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

"""Tables of a probe store. A probe's inputs are in its key, by content; names are for people.

contexts: the model and the code that scores it. mixes: their differences from the reference, by content.
token_rows: rows that were scored together, each known by the sha256 of its own tokens. scores: their sums. timings:
seconds of a pass, by the measurement and its hours.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text

SCHEMA_VERSION = 1

_metadata = MetaData()
_SHA256 = String(64)

version = Table("exltune_probes", _metadata, Column("number", Integer, primary_key=True, autoincrement=False))

contexts = Table(
    "contexts",
    _metadata,
    Column("id", _SHA256, primary_key=True),
    Column("content", Text, nullable=False),
)

mixes = Table(
    "mixes",
    _metadata,
    Column("id", _SHA256, primary_key=True),
    Column("content", Text, nullable=False),
)

token_rows = Table(
    "token_rows",
    _metadata,
    Column("id", _SHA256, primary_key=True),
    Column("row_length", Integer, nullable=False),
    #: 32 bytes for each row.
    Column("rows", LargeBinary, nullable=False),
)

scores = Table(
    "scores",
    _metadata,
    Column("context", _SHA256, ForeignKey(contexts.c.id), primary_key=True),
    Column("mix", _SHA256, ForeignKey(mixes.c.id), primary_key=True),
    Column("token_rows", _SHA256, ForeignKey(token_rows.c.id), primary_key=True),
    Column("name", Text, nullable=False),
    Column("created", String(32), nullable=False),
    #: (8, rows) little-endian float64, ordered as PositionMetrics.stacked.
    Column("sums", LargeBinary, nullable=False),
)

timings = Table(
    "timings",
    _metadata,
    Column("id", _SHA256, primary_key=True),
    Column("seconds", Float(53), nullable=False),
    Column("created", String(32), nullable=False),
)

#: In an order in which they can be made.
TABLES = (version, contexts, mixes, token_rows, scores, timings)

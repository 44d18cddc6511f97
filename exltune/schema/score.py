"""The score of a mix: sums per row, so that two mixes can be compared paired on the same tokens."""

from __future__ import annotations

from exltune.schema.base import Record


class Score(Record):
    """Sums over the scored positions of every row; a row of T tokens has T - 1 scored positions.

    positions: scored positions of each row, T - 1, the same for all rows.
    kl_ref_mix: (rows,) sum of KL(reference‖mix) in nats. kl_mix_ref: (rows,) sum of KL(mix‖reference) in nats.
    nll: (rows,) sum of -log p_mix(next token) in nats. top_k: (5, rows) positions whose ordered first k tokens
    equal the reference's (exllamav3 eval/model_diff.py, "Top-K agreement").
    """

    mix: str
    positions: int
    kl_ref_mix: tuple[float, ...]
    kl_mix_ref: tuple[float, ...]
    nll: tuple[float, ...]
    top_k: tuple[tuple[int, ...], ...]

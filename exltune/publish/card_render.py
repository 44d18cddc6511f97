"""A card as Markdown; the template holds words, the record every number."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, isfinite, log10

from jinja2 import Environment, PackageLoader, StrictUndefined

from exltune.errors import DataError
from exltune.publish.card_metadata import front_matter
from exltune.schema.card import Card

_TEMPLATE = "card.md.j2"
_DIGITS = 3


def render_card(card: Card) -> str:
    """README.md of a card, front matter included. Raises: DataError for a number that is NaN or inf."""
    for field, value in _leaves(card.model_dump()):
        if isinstance(value, float) and not isfinite(value):
            raise DataError(f"a card has no place for {field} = {value}", fix="Evaluate the quants again")
    environment = Environment(
        loader=PackageLoader("exltune.publish"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown is not HTML; the text of a card is its author's own.
        autoescape=False,
    )
    environment.filters |= {"size": size, "fixed": fixed, "count": count}
    return front_matter(card) + "\n" + environment.get_template(_TEMPLATE).render(card=card)


def _leaves(content: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every value of nested objects and lists, with its path: runs.0.difference."""
    if not isinstance(content, dict | list | tuple):
        yield name.removeprefix("."), content
        return
    for key, entry in content.items() if isinstance(content, dict) else enumerate(content):
        yield from _leaves(entry, f"{name}.{key}")


def size(value: float) -> str:
    """Two decimals, or three digits below one: 123.87, 0.000870."""
    decimals = 2 if value >= 1 or value <= 0 else _DIGITS - 1 - floor(log10(value))
    return f"{value:.{decimals}f}"


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals."""
    return f"{value:.{decimals}f}"


def count(value: int) -> str:
    """A count with thousands: 24,384."""
    return f"{value:,}"

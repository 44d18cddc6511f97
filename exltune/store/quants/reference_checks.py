"""Conditions on base quants where the reference is a quant itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from exltune.errors import QuantMismatchError
from exltune.inventory import model_fingerprint
from exltune.store.quants.reference import reference_quant


class _Quant(Protocol):
    @property
    def bits(self) -> float: ...
    @property
    def head_bits(self) -> float: ...
    @property
    def path(self) -> Path: ...


def made_from(reference: Path, fingerprint: Callable[[Path], str] = model_fingerprint) -> str | None:
    """Hash of the unquantized model that a reference is, or was made from; None where nobody noted it."""
    found = reference_quant(reference)
    return fingerprint(reference) if found is None else found.weights_sha256


def refuse_finer(quants: Iterable[_Quant], reference: Path) -> None:
    """A reference with fewer bits than a quant would take the quant's better weights for an error.

    Raises: QuantMismatchError naming the quant.
    """
    found = reference_quant(reference)
    if found is None:
        return
    for quant in quants:
        for what, ours, theirs in (
            ("bits", quant.bits, found.bits),
            ("bits in its head", quant.head_bits, found.head_bits),
        ):
            if ours > theirs:
                raise QuantMismatchError(
                    f"it has {ours:g} {what}, more than the reference {reference}: a quant itself, of {theirs:g}",
                    where=str(quant.path),
                    fix="Give the unquantized model, or the quant with the most bits, as the reference",
                )

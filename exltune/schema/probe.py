"""What a stored probe depends on, by content."""

from __future__ import annotations

from exltune.schema.base import Record


class ProbeContext(Record):
    """What all probes of a measurement share: the model and the code that scores it.

    code: versions of the libraries that the engine computes with, and sha256 of exltune's own sources.
    """

    model_sha256: str
    architecture: str
    engine: str
    code: str


class Swap(Record):
    """What a group was swapped to: `sha256` of its tensors there, None where the choice says it all (KV cache)."""

    choice: str
    sha256: str | None = None


class ProbedMix(Record):
    """A mix by what tells it from the reference: group (or head, cache.k, cache.v) -> swap. `name` is for people."""

    name: str
    swaps: dict[str, Swap]

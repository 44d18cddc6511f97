"""A mix: which bit width every group of tensors takes, and which ones the KV cache has."""

from __future__ import annotations

from collections.abc import Mapping

from exltune.schema.base import Record

#: Where a group's weights come from: a base quant named by its bits ("2", "2.5", "3"), REFERENCE, or any other
#: name under which a quant directory was given to the engine (the evaluation of finished quants does that).
Choice = str

#: Bits of unquantized tensors, weights and caches alike.
UNQUANTIZED_BITS = 16

#: The unquantized weights of the model itself.
REFERENCE: Choice = str(UNQUANTIZED_BITS)

#: Keys of a mix beside its groups: bits of the keys and of the values that all attention layers keep in the cache.
CACHE_K = "cache.k"
CACHE_V = "cache.v"

#: Widths that exllamav3's kernels of the quantized cache have.
CACHE_BITS = (2, 3, 4, 5, 6, 7, 8)

#: The choices of CACHE_K and CACHE_V; REFERENCE is the unquantized cache and the same as no key at all.
CACHE_CHOICES: tuple[Choice, ...] = (*(str(bits) for bits in CACHE_BITS), REFERENCE)

#: Choices of CACHE_K and CACHE_V.
CacheChoice = tuple[Choice, Choice]


#: A mix by its choices alone, to look it up by.
MixKey = tuple[tuple[str, Choice], ...]


def choice_of_bits(bits: float) -> Choice:
    """Name of the base quant at a bit width: 3.0 -> "3", 2.5 -> "2.5"."""
    return f"{bits:g}"


def mix_key(choices: Mapping[str, Choice]) -> MixKey:
    """As Mix.key."""
    cache = (CACHE_K, CACHE_V)
    return tuple((key, choice) for key, choice in sorted(choices.items()) if key not in cache or choice != REFERENCE)


class Mix(Record):
    """The choice of every group and of the head; `name` is for people and need not be unique.

    choices may also hold CACHE_K and CACHE_V (one, both or neither), each one of CACHE_CHOICES.
    """

    name: str
    choices: dict[str, Choice]

    @property
    def key(self) -> MixKey:
        """Its choices alone; an unquantized cache is the same as none."""
        return mix_key(self.choices)

    @property
    def cache(self) -> CacheChoice:
        """The cache's k and v; REFERENCE where the mix does not say."""
        return self.choices.get(CACHE_K, REFERENCE), self.choices.get(CACHE_V, REFERENCE)


class MixSize(Record):
    """Size of a mix as exllamav3's Model.get_storage_info counts it.

    size_bytes: all tensors of linears and head. bpw: 8 * bytes of all linears but the head, fp16 routers included,
    over their weights. overhead_bytes: the part of size_bytes that is not weights (scales, markers, biases, routers).
    """

    size_bytes: int
    bpw: float
    head_bpw: float
    overhead_bytes: int

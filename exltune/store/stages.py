"""The inputs of each stage's result, declared in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from exltune.store.identity import engine_version, identity, scoring_algorithms, scoring_libraries

#: Libraries by their use here.
_CODEC = ("torch", "numpy", "numba")
_SEARCH = ("numpy", "scipy", "optuna")


@dataclass(frozen=True)
class Stage:
    """A stage whose results can be taken up again.

    algorithms, libraries: that compute there on any engine. inputs: names of all it depends on. quantizes,
    scores: the engine's part, with the engine's own algorithms and libraries.
    """

    name: str
    inputs: tuple[str, ...]
    algorithms: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    quantizes: bool = False
    scores: bool = False

    def algorithms_on(self, engine: str | None) -> tuple[str, ...]:
        """All algorithms, those of the engine too."""
        found = [*self.algorithms]
        if engine is not None and self.quantizes:
            found += _QUANTIZING.get(engine, ())
        if engine is not None and (self.scores or self.quantizes):
            found += scoring_algorithms(engine)
        return tuple(dict.fromkeys(found))

    def libraries_on(self, engine: str | None) -> tuple[str, ...]:
        """All libraries, those of the engine too."""
        of_engine = scoring_libraries(engine) if engine is not None and (self.scores or self.quantizes) else ()
        return tuple(dict.fromkeys((*self.libraries, *of_engine)))

    def identity(self, *, engine: str | None = None, **inputs: object) -> str:
        """sha256 (hex) of a result of this stage; engine: the opened engine's name, None for a stage without one.

        Raises: TypeError where inputs are not those that are declared.
        """
        if inputs.keys() != set(self.inputs):
            raise TypeError(f"{self.name} depends on {sorted(self.inputs)}, not on {sorted(inputs)}")
        computes = None if engine is None else {"name": engine, "version": engine_version(engine)}
        algorithms, libraries = self.algorithms_on(engine), self.libraries_on(engine)
        return identity(self.name, algorithms=algorithms, libraries=libraries, engine=computes, inputs=inputs)


_QUANTIZING: Mapping[str, tuple[str, ...]] = {
    "reference": ("capture.reference",),
    "exllamav3": ("capture.exllamav3", "convert.exllamav3"),
}
_ALL_BUT_ENGINES = (
    *("codec", "quantize", "build", "token-sets", "measure", "size", "memory"),
    *("law", "rules", "baselines", "search", "judge", "inventory", "metrics", "format"),
)

#: Tensors of base quants at any width: a further width goes on with the same ones.
TENSORS = Stage("tensors", ("model_sha256", "tokens_sha256", "options"), ("codec", "quantize"), _CODEC, quantizes=True)
#: A base quant's directory. tensors: their identity.
QUANT = Stage("quant", ("tensors", "bits", "head_bits"), ("build", "inventory"))
#: Tensors of a recipe's model, bits by module key.
REQUANTIZE = Stage(
    "requantize",
    ("model_sha256", "tokens_sha256", "codebook", "bits", "head_bits"),
    ("codec", "quantize"),
    _CODEC,
    quantizes=True,
)
#: Mixes that a search has scored. units: their choices; defaults: choices without a unit.
SEARCH = Stage(
    "search",
    ("measurement", "budgets", "units", "defaults"),
    ("search", "law", "size", "memory"),
    _SEARCH,
    scores=True,
)
#: A study of the knobs of a search, which cannot change. search: its identity.
KNOBS = Stage("knobs", ("search", "rules"), ("rules", "search"), _SEARCH)
#: A tune's directory. data: where texts are and how they are dealt; tokens: what they are, for a file may change.
#: rules: those that come with exltune; the user's own are in `search`.
TUNE = Stage(
    "tune",
    ("model_sha256", "asked", "quantize", "data", "tokens", "level", "search", "rules"),
    _ALL_BUT_ENGINES,
    (*_CODEC, *_SEARCH),
    quantizes=True,
    scores=True,
)
#: Answers to prompts by the model itself, so many at once.
GENERATE = Stage(
    "generate",
    ("tokenizer_sha256", "prompts", "options", "model_sha256", "batch"),
    ("generate",),
    ("torch", "transformers"),
)
#: Answers by a server, which is trusted to serve the same model under the same name.
ASK = Stage("ask", ("tokenizer_sha256", "prompts", "options", "served_model"), ("generate",))

STAGES: Mapping[str, Stage] = MappingProxyType(
    {stage.name: stage for stage in (TENSORS, QUANT, REQUANTIZE, SEARCH, KNOBS, TUNE, GENERATE, ASK)}
)

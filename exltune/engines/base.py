"""The engine protocol and the lazy table of engines: heavy imports happen when one is opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from exltune.errors import UsageError
from exltune.plugins import Plugins
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score

if TYPE_CHECKING:
    from torch import Tensor

    from exltune.exl3.codebooks import Codebook
    from exltune.exl3.hessian import Hessian, RotatedHessian
    from exltune.exl3.linear import QuantizedLinear
    from exltune.exl3.quantizer import QuantStats
    from exltune.schema.inventory import Inventory

#: Called as (done, total, what); total is known from the first call on.
Progress = Callable[[int, int, str], None]

AUTO = "auto"

#: An expert that fewer calibration tokens reach by the model's own routing is reported as rare.
MIN_EXPERT_TOKENS = 64

#: Engine name -> "module:Class" of an EngineClass; other distributions add theirs by entry point.
_ENGINES: Mapping[str, str] = {
    "reference": "exltune.engines.reference.engine:ReferenceEngine",
    "exllamav3": "exltune.engines.exllamav3.engine:ExllamaEngine",
}
_PLUGINS = Plugins("engine", "exltune.engines", (AUTO, *_ENGINES))


@dataclass
class ScoreStats:
    """Counts of one score call; seconds are wall time.

    layer_forwards: layer passes over the whole token set, one for each distinct prefix of each layer.
    head_forwards: head passes over the whole token set. mixes: mixes asked for, duplicates included.
    state_bytes: the most hidden states that were held at one time; spilled_bytes: those of them in files.
    vram_bytes: the most memory taken of one device since the engine was opened, 0 on CPUs. shrunk: times that a device
    had too little memory, and took fewer rows from then on.
    """

    mixes: int = 0
    distinct_mixes: int = 0
    layer_forwards: int = 0
    head_forwards: int = 0
    tokens: int = 0
    slabs: int = 0
    state_bytes: int = 0
    spilled_bytes: int = 0
    vram_bytes: int = 0
    shrunk: int = 0
    load_seconds: float = 0.0
    forward_seconds: float = 0.0
    head_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class LayerCapture:
    """Hessians of one decoder layer, or of the head (layer None).

    hessians: linear key -> Hessian of its input; linears with the same input hold the same object.
    expert_tokens: routed expert's prefix (`model.layers.3.mlp.experts.7`) -> tokens that the model's own top-k
    routing sent there; every expert's Hessian has seen all tokens nevertheless. rare_experts: those with fewer
    than the engine's minimum.
    """

    layer: int | None
    hessians: Mapping[str, Hessian]
    expert_tokens: Mapping[str, int] = field(default_factory=dict)
    rare_experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """Resources of an engine; None is the engine's own default.

    devices: numbers of CUDA devices, all of them if none are named. state_bytes: hidden states in RAM during a score
    call. vram_bytes: of each device.
    """

    devices: tuple[int, ...] = ()
    state_bytes: int | None = None
    vram_bytes: int | None = None

    @property
    def of_devices(self) -> dict[str, object]:
        """The resources for engines with devices alone, by name."""
        given = {"devices": self.devices or None, "vram_bytes": self.vram_bytes}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class ConvertJob:
    """A whole model to be quantized by the engine's own converter.

    bits and head_bits: of all linears, and of the head. recipe: bits by module key instead, where given. hq: how often
    exllamav3 raises the bits of its select layers, which makes a mix. out: the empty directory to write into.
    work_dir: files kept for taking the job up again.
    """

    bits: float
    head_bits: float
    codebook: Codebook
    out: Path
    work_dir: Path
    recipe: Mapping[str, float] | None = None
    hq: int = 0


@runtime_checkable
class Converter(Protocol):
    """An engine that quantizes whole models, faster than `Engine.quantize` would linear by linear."""

    def convert(self, job: ConvertJob, tokens: Tensor, progress: Progress | None = None) -> None:
        """Write an EXL3 directory, taking up the work of an earlier attempt.

        tokens: (rows, T) calibration rows. progress counts weights.
        Raises: EngineError with the converter's last lines.
        """
        ...


class Engine(Protocol):
    """All that costs compute. Token sets are int64 tensors (rows, T); every row has the same length."""

    name: str
    model_dir: Path
    inventory: Inventory
    stats: ScoreStats

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        """Score every mix against the reference model on tokens (rows, T), in the order given.

        progress counts layer forwards. Raises: UsageError for a mix that leaves a group without a choice, names an
        unknown one, or asks for bits that the cache has not, DataError for ids outside the vocabulary,
        MissingTensorError, NonFiniteError naming the tensor or the mix, QuantMismatchError for a quant of other shapes,
        UsageError where not even one row of one mix fits into the memory that states may take.
        """
        ...

    def add_quants(self, quants: Mapping[Choice, Path]) -> None:
        """Make further base quants known: choice -> EXL3 directory, each opened when a mix first needs it.

        A choice that is known with another path gets the new one, and tensors kept of the old one are forgotten; the
        same path changes nothing. "16" is always the reference and is passed over.
        """
        ...

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """Rows of `length` tokens whose hidden states fit into the engine's memory; 0 if not even one row does.

        score takes any number of them, in slabs, and mixes that do not fit together in parts.
        """
        ...

    def capture(
        self, tokens: Tensor, keys: Collection[str] | None = None, progress: Progress | None = None
    ) -> Iterator[LayerCapture]:
        """Hessians of the inputs of the linears `keys` (all if None), layer by layer on the reference model.

        Layers without wanted linears yield nothing. Raises: as score.
        """
        ...

    def quantize(
        self, key: str, hessian: Hessian | RotatedHessian | None, bits: float, codebook: Codebook, seed: str
    ) -> tuple[QuantizedLinear, QuantStats]:
        """Quantize the reference weight of one linear.

        Raises: MissingTensorError, NonFiniteError, NotAModelError where the reference is a quant.
        """
        ...

    def rfn(self, choice: Choice, keys: Iterable[str] | None = None) -> dict[str, float]:
        """Relative Frobenius error ‖W_choice - W‖ / ‖W‖ of linears (all in groups and the head if None)."""
        ...


class EngineClass(Protocol):
    """The class of an engine: a row of the table, or an entry point of the group "exltune.engines".

    needs_gpu: whether a worker of a cluster has to have a GPU for it; one that needs none is given no devices.
    exltune.testing.engines has the tests that its engines must pass. A distribution names it in its pyproject.toml:

        [project.entry-points."exltune.engines"]
        mine = "my_package.engine:MyEngine"
    """

    needs_gpu: bool

    def __call__(self, model_dir: Path, quants: Mapping[Choice, Path], **settings: Any) -> Engine:
        """Open the engine. settings: the resources that were given, by name."""
        ...


def engine_names() -> tuple[str, ...]:
    """Names that open_engine takes; no engine is imported for it."""
    return _PLUGINS.names()


def runs_on_cpu(name: str) -> bool:
    """Whether an opened engine of this name needs no GPU. Raises: UsageError as open_engine."""
    return not _engine_class(name).needs_gpu


def auto_engine() -> tuple[str, str | None]:
    """The engine that "auto" stands for on this machine, and why not a faster one."""
    reason = import_module("exltune.engines.exllamav3.runtime").why_not()
    return ("exllamav3", None) if reason is None else ("reference", f"not exllamav3: {reason}")


def open_engine(
    name: str,
    model_dir: str | Path,
    quants: Mapping[Choice, Path] | None = None,
    resources: Resources | None = None,
) -> Engine:
    """Open an engine on a model and its base quants; "auto" picks the fastest one that this machine can run.

    model_dir: the reference, unquantized or an EXL3 directory. quants: choice -> EXL3 directory; "16" is always the
    reference and needs none. Where "auto" takes the CPU although there is a CUDA device, the log says why.
    Raises: UsageError for an unknown name, an entry point that gives no engine, or devices of an engine that has none,
    and all that reading the model raises.
    """
    resources, resolved = resources or Resources(), _automatic() if name == AUTO else name
    engine_class = _engine_class(resolved)
    settings: dict[str, object] = {} if resources.state_bytes is None else {"state_bytes": resources.state_bytes}
    if resources.of_devices and not engine_class.needs_gpu:
        raise UsageError(
            f"engine {resolved} runs on the CPU", fix="Leave `devices` and `max_vram` out, or take another `engine`"
        )
    settings |= resources.of_devices
    return engine_class(Path(model_dir), dict(quants or {}), **settings)


def _engine_class(name: str) -> EngineClass:
    entry = _PLUGINS.find(name)
    if entry is None:
        module, _, attribute = _ENGINES[name].partition(":")
        return cast(EngineClass, getattr(import_module(module), attribute))
    found = _PLUGINS.load(entry)
    if not isinstance(found, type):
        raise _PLUGINS.refused(entry, "is not a class")
    methods = [method for method, value in vars(Engine).items() if callable(value) and not method.startswith("_")]
    if missing := [attribute for attribute in ("needs_gpu", *methods) if not hasattr(found, attribute)]:
        raise _PLUGINS.refused(entry, f"is not an engine: its class has no {', '.join(missing)}")
    return cast(EngineClass, found)


def _automatic() -> str:
    """The engine that "auto" stands for; a machine with a card that is not used is not passed over in silence."""
    name, reason = auto_engine()
    if reason is not None and import_module("torch").cuda.is_available():
        logging.getLogger(__name__).warning("the engine is %s, %s", name, reason)
    return name

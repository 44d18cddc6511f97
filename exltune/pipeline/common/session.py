"""One model with its base quants, token sets, engine and scores: each opened once, when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exltune import __version__
from exltune.corpora import TokenSet
from exltune.engines.base import AUTO, Engine, Resources, open_engine
from exltune.errors import UsageError
from exltune.inventory import load_inventory, model_fingerprint, read_config
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice
from exltune.schema.probe import ProbeContext
from exltune.schema.provenance import Provenance, ReferenceQuant
from exltune.schema.tokens import DataOptions, Split
from exltune.store.content import DirectoryState, MixContent, directory_state
from exltune.store.database import Database
from exltune.store.identity import scoring_versions
from exltune.store.names import user_scores
from exltune.store.probes import ProbeStore
from exltune.store.quants.reference import reference_quant
from exltune.store.score_cache import ScoreCache

if TYPE_CHECKING:
    import torch

    from exltune.engines.ray.options import RayOptions
    from exltune.store.quants.directories import BaseQuant
    from exltune.store.quants.held_out import HeldOut


@dataclass(frozen=True)
class EngineOptions:
    """Which engine, its resources, and the cluster to score on (this process if None)."""

    name: str = AUTO
    resources: Resources = field(default_factory=Resources)
    ray: RayOptions | None = None


class Session:
    """Shared by all stages of one job.

    Opening costs nothing: every part is read when a stage first asks for it, and never again. To be used in a `with`
    block, or closed: an engine may hold workers of a cluster.

    Args:
        model: The reference, unquantized or an EXL3 directory.
        data: Of which texts the token sets are dealt; stages that need none do without.
        quants: The folder of base quants.
        engine: Which engine, and what it may take.
        store: File or URL of the scores, a file in the user's cache directory if None.
        reporter: Who is told of the progress.
    """

    def __init__(
        self,
        model: Path,
        data: DataOptions | None = None,
        *,
        quants: Path | None = None,
        engine: EngineOptions | None = None,
        store: str | Path | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.model, self._data, self.quants_dir = Path(model), data, quants
        self.engine_options, self.reporter = engine or EngineOptions(), reporter or Silent()
        self.store = store
        self._open, self._fingerprints = ExitStack(), dict[tuple[Path, DirectoryState], str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def use(self, *, quants: Path, store: str | Path) -> None:
        """Where base quants and scores lie. Raises: UsageError once others were opened."""
        others = (quants, store) != (self.quants_dir, self.store)
        if others and self.__dict__.keys() & {"base_quants", "scores"}:
            raise UsageError("the session has opened other base quants or scores", fix="Take a session of its own")
        self.quants_dir, self.store = quants, store

    def close(self) -> None:
        """Let go of workers."""
        self._open.close()

    @property
    def data(self) -> DataOptions:
        """The source of the token sets. Raises: UsageError where nothing was given."""
        if self._data is None:
            raise UsageError("this needs texts", fix="Give the session `data`")
        return self._data

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json. Raises: NotAModelError, CorruptFileError."""
        return read_config(self.model)

    @cached_property
    def inventory(self) -> Inventory:
        """The model's linears and groups. Raises: as load_inventory."""
        return self.engine.inventory if "engine" in self.__dict__ else load_inventory(self.model)

    @cached_property
    def reference(self) -> ReferenceQuant | None:
        """The reference's quant, where the model is a quant itself."""
        return reference_quant(self.model)

    def fingerprint(self, directory: Path | None = None) -> str:
        """sha256 (hex) of a model directory, of the session's own model if None. Raises: as model_fingerprint."""
        path = (directory or self.model).resolve()
        key = path, directory_state(path)
        if key not in self._fingerprints:
            self._fingerprints[key] = model_fingerprint(path)
        return self._fingerprints[key]

    @cached_property
    def token_sets(self) -> Mapping[Split, TokenSet]:
        """The four token sets. Raises: DataError."""
        from exltune.corpora.dealing import token_sets

        return token_sets(self.data, self.model)

    def ids(self, split: Split) -> torch.Tensor:
        """Token ids (rows, T) int64 of a set, as engines take them."""
        from exltune.corpora.dealing import ids

        return ids(self.token_sets[split])

    @cached_property
    def base_quants(self) -> tuple[BaseQuant, ...]:
        """The base quants by ascending bits; the engine knows them from then on. Raises: as find_base_quants."""
        from exltune.store.quants.base_quants import find_base_quants, paths_of

        if self.quants_dir is None:
            raise UsageError("this needs base quants", fix="Give the session the folder of `quants`")
        quants = tuple(find_base_quants(self.quants_dir, self.model, self.fingerprint))
        self.add_quants(paths_of(quants))
        return quants

    @cached_property
    def engine(self) -> Engine:
        """The engine, on the model. Raises: as open_engine."""
        options = self.engine_options
        opened = open_engine(options.name, self.model, None, options.resources)
        if options.ray is None:
            return opened
        from exltune.engines.ray.engine import RayEngine

        remote = RayEngine(opened, options.resources, options.ray, scoring_versions, self.reporter.remark)
        return self._open.enter_context(remote)

    @cached_property
    def _content(self) -> MixContent:
        reference = self.model if self.reference is not None else None
        return MixContent(self.engine.inventory, reference)

    @cached_property
    def scores(self) -> ScoreCache:
        """The scores: whatever was scored before, by this job or another, is taken from them. Raises: as Database."""
        context = ProbeContext(
            model_sha256=self.fingerprint(),
            reference=self.reference,
            architecture=self.engine.inventory.architecture,
            engine=self.engine.name,
            code=scoring_versions(self.engine.name),
        )
        store = user_scores() if self.store is None else self.store
        return ScoreCache(self.engine, ProbeStore(Database(store), context), self._content)

    def held_out(self, *, trust: bool = False) -> HeldOut:
        """Tells whether a quant has seen the held-out rows. trust: take those that nobody can tell of."""
        from exltune.store.quants.held_out import HeldOut

        return HeldOut(self.model, self.data, self.token_sets[Split.HELD_OUT], trust=trust)

    def add_quants(self, quants: Mapping[Choice, Path]) -> None:
        """Let mixes name further quant directories. Raises: QuantMismatchError for one that was replaced meanwhile."""
        self._content.add(quants)
        self.engine.add_quants(quants)
        if "scores" in self.__dict__:
            self.scores.forget_names()

    def provenance(self, split: Split) -> Provenance:
        """Where a result on a token set came from."""
        info = self.token_sets[split].info
        return Provenance(
            exltune_version=__version__,
            engine=self.engine.name,
            model_path=str(self.model.resolve()),
            model_sha256=self.fingerprint(),
            reference=self.reference,
            tokens_sha256=info.sha256,
            rows=info.rows,
            row_length=info.row_length,
            seed=self.data.seed,
        )

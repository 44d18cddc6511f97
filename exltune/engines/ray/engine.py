"""Any engine on a Ray cluster: scores come from the workers, everything else from the engine that is wrapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from exltune.engines.base import Engine, LayerCapture, Progress, Resources, ScoreStats
from exltune.engines.ray.cluster import Cluster
from exltune.engines.ray.options import RayOptions
from exltune.engines.ray.worker import WorkerJob, WorkerQuant
from exltune.engines.tasks import ScoredTask, ScoreTask
from exltune.inventory import model_fingerprint
from exltune.schema.mix import Choice, Mix, MixKey
from exltune.schema.score import Score

if TYPE_CHECKING:
    from torch import Tensor

    from exltune.exl3.codebooks import Codebook
    from exltune.exl3.hessian import Hessian, RotatedHessian
    from exltune.exl3.linear import QuantizedLinear
    from exltune.exl3.quantizer import QuantStats


class RayEngine:
    """An Engine whose scores are computed by workers, each with an engine of the same name.

    inner: opened on the model. resources: of each worker. versions: engine name -> its versions, in words; a
    worker with others is refused. The cluster is joined at the first score and left at the end of the `with` block.
    Raises: as Cluster, and as the engine that is wrapped.
    """

    def __init__(
        self,
        inner: Engine,
        resources: Resources,
        options: RayOptions,
        versions: Callable[[str], str],
        remark: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.inner, self.name, self.model_dir, self.inventory = inner, inner.name, inner.model_dir, inner.inventory
        self.stats = ScoreStats()
        model = Path(inner.model_dir).resolve()
        job = WorkerJob(inner.name, model, model_fingerprint(model), resources, versions)
        self._cluster, self._joined = Cluster(options, job, remark), ExitStack()
        self._is_joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._joined.close()
        self._is_joined = False

    def parallel(self) -> int:
        """Workers of the cluster."""
        return len(self._join())

    def add_quants(self, quants: Mapping[Choice, Path]) -> None:
        """As Engine.add_quants; the paths must be the same on all nodes."""
        self.inner.add_quants(quants)
        resolved = {choice: Path(path).resolve() for choice, path in quants.items()}
        self._cluster.quants |= {
            choice: WorkerQuant(path, model_fingerprint(path)) for choice, path in resolved.items()
        }

    def run_tasks(self, tasks: Sequence[ScoreTask], tokens: Tensor, progress: Progress) -> Iterator[ScoredTask]:
        """As RunsTasks.run_tasks."""
        cluster = self._join()
        for done in cluster.run(tasks, tokens, progress):
            self.stats.state_bytes = cluster.state_bytes
            yield done

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        """As Engine.score: every worker takes a share of the distinct mixes."""
        cluster, rows = self._join(), tuple(range(len(tokens)))
        distinct = list({mix.key: mix for mix in mixes}.values())
        step = -(-len(distinct) // max(len(cluster), 1)) or 1
        tasks = [ScoreTask(tuple(distinct[at : at + step]), rows) for at in range(0, len(distinct), step)]
        found: dict[MixKey, Score] = {}
        for task, scores in self.run_tasks(tasks, tokens, progress or (lambda done, total, what: None)):
            found |= {mix.key: score for mix, score in zip(task.mixes, scores, strict=True)}
        self.stats = replace(self.stats, mixes=len(mixes), distinct_mixes=len(distinct), tokens=tokens.numel())
        return [found[mix.key].model_copy(update={"mix": mix.name}) for mix in mixes]

    def rows_at_once(self, mixes: Sequence[Mix], length: int) -> int:
        """As Engine.rows_at_once, of one worker."""
        return self.inner.rows_at_once(mixes, length)

    def capture(
        self, tokens: Tensor, keys: Collection[str] | None = None, progress: Progress | None = None
    ) -> Iterator[LayerCapture]:
        """As Engine.capture, in this process."""
        return self.inner.capture(tokens, keys, progress)

    def quantize(
        self, key: str, hessian: Hessian | RotatedHessian | None, bits: float, codebook: Codebook, seed: str
    ) -> tuple[QuantizedLinear, QuantStats]:
        """As Engine.quantize, in this process."""
        return self.inner.quantize(key, hessian, bits, codebook, seed)

    def rfn(self, choice: Choice, keys: Iterable[str] | None = None) -> dict[str, float]:
        """As Engine.rfn, in this process."""
        return self.inner.rfn(choice, keys)

    def _join(self) -> Cluster:
        if not self._is_joined:
            self._joined.enter_context(self._cluster)
            self._is_joined = True
        return self._cluster

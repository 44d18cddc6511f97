"""Benchmark tasks through EleutherAI's lm-evaluation-harness, asked of any OpenAI-compatible endpoint."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from exltune.errors import DataError, DeployError, UsageError
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.schema.compare import Source, TaskRun, TaskRuns
from exltune.store.files import refuse_existing_file
from exltune.store.records import read_record, write_record

if TYPE_CHECKING:
    from lm_eval.api.model import LM

#: exltune's extra that brings the harness.
EXTRA = "exltune[tasks]"
_GENERATES = "generate_until"
_CHAT = "/chat/completions"
_URL = ("http://", "https://")


@dataclass(frozen=True)
class TaskOptions:
    """The tasks and their settings. include: folders with task YAML files of one's own. limit: documents of each task.

    model: the name that the endpoint knows the model by. max_tokens: of one answer, thinking included.
    think_end: end of a model's thinking, where the server leaves it in the answer. unsafe: run tasks that execute
    the model's output.
    """

    names: tuple[str, ...] = ()
    include: tuple[Path, ...] = ()
    model: str = "default"
    max_tokens: int = 8192
    limit: int | None = None
    concurrent: int = 1
    think_end: str | None = None
    unsafe: bool = False

    def answers_depend_on(self) -> dict[str, str]:
        """The settings that both sides of a comparison must share."""
        return {"max_tokens": str(self.max_tokens), "limit": str(self.limit), "think_end": str(self.think_end)}

    def words(self) -> list[str]:
        """The same as options of the command line."""
        words = ["--tasks", ",".join(self.names)] if self.names else []
        words += [word for folder in self.include for word in ("--include-path", str(folder))]
        words += ["--served-model", self.model, "--max-tokens", str(self.max_tokens)]
        words += ["--concurrent", str(self.concurrent)]
        words += [] if self.limit is None else ["--limit", str(self.limit)]
        words += [] if self.think_end is None else ["--think-end", self.think_end]
        return words + ["--unsafe-tasks"] * self.unsafe


def run_tasks(
    endpoint: str,
    settings: TaskOptions,
    *,
    out: Path | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> TaskRuns:
    """`exltune tasks`: answers of one endpoint, each document's metric and whether its answer was cut off.

    Raises: UsageError without the harness or for tasks that it does not know or cannot ask over chat, DeployError
    where the endpoint does not answer, DataError where a task's data are not at hand, OutputExistsError.
    """
    if not endpoint.startswith(_URL):
        raise UsageError(f"{endpoint!r} is not an http address", fix="For example http://localhost:5000/v1")
    if out is not None:
        refuse_existing_file(out, force=force)
    words = ["exltune", "tasks", endpoint, *settings.words(), *(["--out", str(out)] if out is not None else [])]
    runs = _ask(endpoint, settings, Source(file=None if out is None else str(out), command=shlex.join(words)), reporter)
    if out is not None:
        write_record(out, runs)
    return runs


def task_runs(where: str, settings: TaskOptions, source: Source, reporter: Reporter) -> TaskRuns:
    """The answers of an endpoint, or those of an earlier run out of its file. Raises: as run_tasks."""
    if where.startswith(_URL):
        return _ask(where, settings, source, reporter)
    runs = read_record(Path(where), TaskRuns)
    return runs.model_copy(update={"source": Source(file=where, command=runs.source.command)})


def check_answers(where: str, settings: TaskOptions) -> None:
    """Check before long work that the file is readable and the harness is installed. Raises: as run_tasks."""
    if not where.startswith(_URL):
        read_record(Path(where), TaskRuns)
    elif not settings.names:
        raise UsageError("no tasks are named", where=where, fix="Give `tasks` mmlu_pro,gpqa_diamond_cot_zeroshot")
    else:
        _harness()


def _ask(endpoint: str, settings: TaskOptions, source: Source, reporter: Reporter | None) -> TaskRuns:
    check_answers(endpoint, settings)
    harness = _harness()
    with (reporter or Silent()).stage(f"Tasks of {endpoint}"):
        found = _evaluate(harness, endpoint, settings)
    return TaskRuns(
        endpoint=endpoint,
        model=settings.model,
        harness_version=str(harness.__version__),
        settings=settings.answers_depend_on(),
        runs=tuple(task_run(name, found) for name in found["samples"]),
        source=source,
    )


def task_run(name: str, found: Mapping[str, Any]) -> TaskRun:
    """One task out of results of lm_eval.simple_evaluate with log_samples. Raises: DataError where it has no metric.

    The first metric of the task's list and the last of its filters count: tasks list the lenient one, which finds an
    answer in any form, after the strict ones.
    """
    samples: Sequence[Mapping[str, Any]] = found["samples"][name]
    if not samples:
        raise DataError("the task has no documents", where=name)
    metric, chosen = samples[0]["metrics"][0], samples[-1]["filter"]
    kept = sorted((sample for sample in samples if sample["filter"] == chosen), key=lambda sample: sample["doc_id"])
    values = [sample[metric] for sample in kept]
    if not all(isinstance(value, int | float) for value in values):
        raise DataError(f"its metric {metric} is not a number for each document", where=name, fix="Choose another task")
    return TaskRun(
        task=name,
        version=str(found["versions"].get(name)),
        metric=metric,
        filter=chosen,
        higher_is_better=bool(found["higher_is_better"][name].get(metric, True)),
        doc_hashes=tuple(f"{sample['doc_hash']}:{sample['prompt_hash']}" for sample in kept),
        values=tuple(map(float, values)),
        truncated=tuple(_cut_off(sample["resps"]) for sample in kept),
        total=int(found["n-samples"][name]["original"]),
    )


class Answer(str):
    """A model's text that remembers whether its token limit cut it off; the harness carries it through as a str."""

    truncated = False

    @classmethod
    def of(cls, text: str | None, *, truncated: bool) -> Answer:
        """The text, empty where the limit came before the first visible word."""
        answer = cls(text or "")
        answer.truncated = truncated
        return answer


def _cut_off(responses: Iterable[Iterable[object]]) -> bool:
    return any(isinstance(text, Answer) and text.truncated for several in responses for text in several)


def _harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.models.openai_completions
    except ImportError as error:
        raise UsageError(
            f"benchmark tasks need lm-evaluation-harness ({error})", fix=f"pip install '{EXTRA}'"
        ) from error
    module: ModuleType = lm_eval
    return module


def _evaluate(harness: ModuleType, endpoint: str, settings: TaskOptions) -> dict[str, Any]:
    """lm_eval.simple_evaluate with the user's mistakes as our errors. Source: lm-eval 0.4.13, evaluator.py."""
    import requests
    from aiohttp import ClientError
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(folder) for folder in settings.include] or None)
    _check_tasks(manager, settings)
    try:
        found: dict[str, Any] = harness.simple_evaluate(
            model=_model(endpoint, settings),
            tasks=list(settings.names),
            task_manager=manager,
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
            limit=settings.limit,
            gen_kwargs={"max_gen_toks": settings.max_tokens},
            confirm_run_unsafe_code=settings.unsafe,
        )
    except (requests.RequestException, ClientError) as error:
        raise DeployError(
            f"the endpoint does not answer: {error}",
            where=endpoint,
            fix="Check that it serves /v1/chat/completions; a key is read from OPENAI_API_KEY",
        ) from error
    except (DatasetsError, FileNotFoundError, ConnectionError) as error:
        raise DataError(
            f"the data of a task cannot be read ({error})", where=", ".join(settings.names), fix="Download them first"
        ) from error
    return found


def _check_tasks(manager: Any, settings: TaskOptions) -> None:
    unknown = [name for name in settings.names if name not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}",
            fix="lm_eval ls tasks lists them; `include_path` adds folders with task files",
        )


def _model(endpoint: str, settings: TaskOptions) -> LM:
    """The harness's chat model, its answers marked where finish_reason is "length"."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    class MarkedChat(LocalChatCompletion):  # type: ignore[misc]
        def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
            replies = outputs if isinstance(outputs, list) else [outputs]
            reasons = [
                choice.get("finish_reason")
                for reply in replies
                for choice in sorted(reply["choices"], key=lambda choice: choice["index"])
            ]
            texts = super().parse_generations(outputs, **kwargs)
            return [Answer.of(text, truncated=why == "length") for text, why in zip(texts, reasons, strict=True)]

        def loglikelihood(self, requests: Any, **kwargs: Any) -> Any:
            raise UsageError(
                "a task asks for the likelihood of given answers, which chat endpoints do not tell",
                where=", ".join(settings.names),
                fix=f"Choose tasks of output_type {_GENERATES}, such as mmlu_pro or gpqa_diamond_cot_zeroshot",
            )

    url = endpoint.rstrip("/")
    return MarkedChat(
        base_url=url if url.endswith(_CHAT) else url + _CHAT,
        model=settings.model,
        num_concurrent=settings.concurrent,
        think_end_token=settings.think_end,
        tokenizer_backend=None,
        eos_string="",
    )

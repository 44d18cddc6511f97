"""`exltune generate`: a model's own answers to seed prompts, as data of the kind that it will be used on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exltune.corpora import ModelTokenizer
from exltune.corpora.prompts import read_prompts
from exltune.engines.sampling import LocalSampler, Sampler, Task
from exltune.errors import ModelError, UsageError
from exltune.inventory import model_fingerprint
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.pipeline.texts.answers_file import AnswersFile
from exltune.schema.generate import GenerateOptions, GenerateResult
from exltune.store.files import locked, refuse_existing_file
from exltune.store.stages import ASK, GENERATE

if TYPE_CHECKING:
    from exltune.publish.openai_client import Endpoint

#: Prompts that a CPU answers at once.
BATCH = 8


def generate(
    model: Path,
    prompts: Path,
    out: Path,
    settings: GenerateOptions,
    *,
    endpoint: Endpoint | None = None,
    batch: int = BATCH,
    force: bool = False,
    reporter: Reporter | None = None,
) -> GenerateResult:
    """Let a model answer prompts and write JSON lines for --data; the same call again goes on where it was stopped.

    model: its directory, for the tokenizer and the chat template; also for the weights where no endpoint serves it.
    batch: prompts answered at once without an endpoint. Raises: OutputExistsError, DataError naming a prompt,
    ModelError, DeployError.
    """
    reporter = reporter or Silent()
    if out.suffix.lower() != ".jsonl":
        raise UsageError(f"`out` {out.name} does not end with .jsonl", fix="`data` knows JSON lines by that ending")
    refuse_existing_file(out, force=force)
    tokenizer = ModelTokenizer(model)
    tasks = _tasks(prompts, tokenizer, settings)
    job = _job(tokenizer, tasks, settings, endpoint, batch)
    with locked(out):
        kept = AnswersFile(out, job, force=force)
        missing = [task for task in tasks if task.key not in kept.answers]
        if missing:
            _run(_sampler(model, tokenizer, settings, endpoint, batch), tasks, kept, reporter)
        return kept.finish(out, tasks)


def _tasks(prompts: Path, tokenizer: ModelTokenizer, settings: GenerateOptions) -> list[Task]:
    """Every prompt as often as it is asked for; each is rendered once, for a bad one must not stop a night's work."""
    asked = [prompt.of(tokenizer) for prompt in read_prompts(prompts)]
    for prompt in asked:
        prompt.rendered(tokenizer)
    return [
        Task((number, sample), prompt)
        for number, prompt in enumerate(asked, 1)
        for sample in range(1, settings.per_prompt + 1)
    ]


def _sampler(
    model: Path, tokenizer: ModelTokenizer, settings: GenerateOptions, endpoint: Endpoint | None, batch: int
) -> Sampler:
    if endpoint is None:
        return LocalSampler(model, tokenizer, settings, batch)
    from exltune.publish.openai_client import EndpointSampler

    return EndpointSampler(endpoint, settings)


def _run(sampler: Sampler, tasks: list[Task], kept: AnswersFile, reporter: Reporter) -> None:
    with reporter.stage("sample") as progress:
        progress(len(kept.answers), len(tasks), "")
        for part in sampler.sample(tasks, frozenset(kept.answers)):
            kept.add(part)
            progress(len(kept.answers), len(tasks), part[-1][0].prompt.where)


def _job(
    tokenizer: ModelTokenizer, tasks: list[Task], settings: GenerateOptions, endpoint: Endpoint | None, batch: int
) -> str:
    """The inputs of the answers."""
    asked = [(task.key, task.prompt.row()) for task in tasks]
    if endpoint is not None:
        return ASK.identity(
            tokenizer_sha256=tokenizer.sha256, prompts=asked, options=settings, served_model=endpoint.model
        )
    return GENERATE.identity(
        tokenizer_sha256=tokenizer.sha256,
        prompts=asked,
        options=settings,
        model_sha256=_weights_sha256(tokenizer.model_dir),
        batch=batch,
    )


def _weights_sha256(model: Path) -> str:
    """The fingerprint of a model that answers by itself. Raises: ModelError where it has no weights here."""
    try:
        return model_fingerprint(model)
    except ModelError as error:
        raise ModelError(error.what, where=str(model), fix="Serve the model and give its address with `url`") from error

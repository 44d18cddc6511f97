"""`exltune generate`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json
from exltune.cli.registry import Section, command
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.publish.openai_client import Endpoint

_NEEDS_URL = "Give --url, or leave {} out"


@command(Section.TEXTS, 2)
def generate(
    *,
    model: options.Model,
    prompts: Annotated[
        Path, typer.Option("--prompts", help="A prompt on each line, or .jsonl with prompt, messages or text.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON lines go (.jsonl).", show_default=False)],
    per_prompt: Annotated[int, typer.Option("--per-prompt", min=1, help="Answers to each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of one answer.")] = 1024,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0: always the likeliest token; 1: as the model says.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1, help="Share of the probability kept.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts at once, without --url.")] = 8,
    url: Annotated[
        str | None,
        typer.Option("--url", help="OpenAI-compatible server that has the model; else the CPU.", show_default=False),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="Name by which the server knows it.", show_default=False)
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="A file with the server's API key alone.", show_default=False)
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Requests under way at once.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 600.0,
    result: options.OutputFlags,
) -> None:
    """Let the model answer seed prompts and write JSON lines for --data. Resumes after a kill."""
    from exltune.pipeline.texts.generate import generate as run
    from exltune.schema.generate import GenerateOptions

    found = run(
        model,
        prompts,
        out,
        GenerateOptions(
            per_prompt=per_prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ),
        endpoint=_endpoint(url, served_model, key_file, parallel, timeout),
        batch=batch,
        force=result.force,
        reporter=RichReporter(),
    )
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo(f"{out}: {found.samples:,} samples, {found.tokens:,} tokens", nl=False)
        typer.echo(f"; {found.cut:,} cut at {max_new_tokens:,} tokens, {found.empty:,} empty ones left out")


def _endpoint(
    url: str | None, model: str | None, key_file: Path | None, parallel: int, timeout: float
) -> Endpoint | None:
    if url is None:
        for option, value in (("--served-model", model), ("--key-file", key_file)):
            if value is not None:
                raise UsageError(f"{option} is of no use without --url", fix=_NEEDS_URL.format(option))
        return None
    from pydantic import SecretStr

    from exltune.publish.openai_client import Endpoint

    key = None if key_file is None else SecretStr(_key(key_file))
    return Endpoint(url, model or "default", key, parallel, timeout)


def _key(path: Path) -> str:
    words = path.read_text(encoding="utf-8").split()
    if len(words) != 1:
        raise UsageError("it does not hold one key", where=str(path), fix="Write the key alone into it")
    return words[0]

"""`exltune deploy`: the commands and their messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, print_json, with_options
from exltune.cli.flags import Only
from exltune.cli.registry import Group, Section
from exltune.errors import UsageError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from exltune.pipeline.deployment.deploy import DeployOptions
    from exltune.pipeline.deployment.draft import DraftOptions
    from exltune.schema.deploy import Deployment, DeployReport

group = Group("deploy", "Serve a quant as it was planned.", Section.SHIP, 1)


@dataclass(frozen=True, kw_only=True)
class _MemoryFlags(options.MemoryFlags):
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens of the cache; else the most that fit.", show_default=False)
    ] = None
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="Bits of keys and values, 5,4 or fp16; else the recipe's.", show_default=False),
    ] = None
    slots: Annotated[int, typer.Option("--slots", help="Sequences at a time (max_batch_size).")] = 16


@dataclass(frozen=True, kw_only=True)
class _DraftFlags:
    draft: Annotated[
        Path | None, typer.Option("--draft", help="EXL3 directory of a draft model.", show_default=False)
    ] = None
    mtp: Annotated[bool, typer.Option("--mtp", help="Draft with the quant's own MTP layer.")] = False
    ngram: Annotated[bool, typer.Option("--ngram", help="Draft with n-grams of the text so far.")] = False
    draft_tokens: Annotated[
        int | None, typer.Option("--draft-tokens", help="Tokens to draft at a time.", show_default=False)
    ] = None

    def options(self) -> DraftOptions | None:
        """How to draft, if at all. Raises: UsageError."""
        from exltune.pipeline.deployment.draft import DraftOptions

        if (self.draft is not None) + self.mtp + self.ngram > 1:
            raise UsageError("--draft, --mtp and --ngram are three ways to draft", fix="Give one of them")
        if self.draft is not None:
            return DraftOptions("model", self.draft, self.draft_tokens)
        if self.mtp or self.ngram:
            return DraftOptions("mtp" if self.mtp else "ngram", None, self.draft_tokens)
        if self.draft_tokens is not None:
            raise UsageError("--draft-tokens goes with --draft, --mtp or --ngram", fix="Give one of them")
        return None


@dataclass(frozen=True, kw_only=True)
class _ServerFlags:
    load: Annotated[
        str | None,
        typer.Option("--load", metavar="URL", help="Load it on this running server and check it.", show_default=False),
    ] = None
    api_tokens: Annotated[
        Path | None,
        typer.Option("--api-tokens", help="The server's api_tokens.yml; else the one in --out.", show_default=False),
    ] = None
    admin_key_file: Annotated[
        Path | None, typer.Option("--admin-key-file", help="A file with the admin key alone.", show_default=False)
    ] = None
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a byte from the server.")
    ] = 300.0

    def key(self, out: Path | None) -> SecretStr | None:
        """The admin key; None where no file is named and none lies in `out`: a server may have its keys disabled."""
        from exltune.publish.tabby_tokens import TOKENS, read_key_file, read_tokens

        if self.api_tokens is not None and self.admin_key_file is not None:
            raise UsageError("--api-tokens and --admin-key-file both name the key", fix="Give one of them")
        if self.admin_key_file is not None:
            return read_key_file(self.admin_key_file)
        if self.api_tokens is None and (out is None or not (out / TOKENS).is_file()):
            return None
        return read_tokens(self.api_tokens or (out or Path()) / TOKENS).admin_key


@dataclass(frozen=True, kw_only=True)
class _WrittenFlags(options.OutputFlags):
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for TabbyAPI's files.", show_default=False)
    ] = None


_Source = Annotated[
    Path | None,
    typer.Argument(metavar="OUT", help="EXL3 directory; or a recipe or config of one to come.", show_default=False),
]
_ManualSplit = Annotated[
    bool, typer.Option("--manual-split", help="Limit each card to its size in --gpus (gpu_split) instead of autosplit.")
]
_Models = Annotated[
    Path | None,
    typer.Option("--models", help="For a recipe or config: the folder that the model will lie in.", show_default=False),
]
_ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="Name of the model's folder, there or on the server.", show_default=False),
]
_Bits = Annotated[
    float | None, typer.Option("--bits", help="For a config: the average bpw of the quant to come.", show_default=False)
]
_ToolFormat = Annotated[
    str | None, typer.Option("--tool-format", help="TabbyAPI's parser of tool calls.", show_default=False)
]
_Reasoning = Annotated[
    bool | None, typer.Option("--reasoning/--no-reasoning", help="Split <think> blocks off.", show_default=False)
]
_Host = Annotated[str, typer.Option("--host", help="Address of this machine that the container is published on.")]
_Port = Annotated[int, typer.Option("--port", help="Port of this machine.")]
_MEMORY = Only("gpus", "context", "cache", "chunk", "slots", "tensor_parallel", "offload_layers")


@group.command()
def tabby(
    *,
    source: _Source = None,
    memory: Annotated[_MemoryFlags, _MEMORY],
    manual_split: _ManualSplit = False,
    draft: _DraftFlags,
    models: _Models = None,
    model_name: _ModelName = None,
    bits: _Bits = None,
    model: options.RecipeModel = None,
    calibrate: options.Calibrate = None,
    tool_format: _ToolFormat = None,
    reasoning: _Reasoning = None,
    host: _Host = "127.0.0.1",
    port: _Port = 5000,
    server: _ServerFlags,
    result: _WrittenFlags,
) -> None:
    """Write TabbyAPI's files from a plan, or load the plan on a running TabbyAPI. Exit code 4 where it does not fit."""
    from exltune.pipeline.deployment.deploy import DeployOptions, Split

    _check_task(source, result.out, memory.gpus, server.load)
    planned = DeployOptions(
        gpus=memory.cards(),
        context=memory.context,
        cache=memory.cache_bits(),
        chunk=memory.chunk,
        slots=memory.slots,
        split=Split(memory.tensor_parallel, manual_split),
        offload_layers=memory.offload_layers,
        draft=draft.options(),
        bits=bits,
        model=model,
        readings=calibrate,
        models_dir=models,
        model_name=model_name,
        tool_format=tool_format,
        reasoning=reasoning,
        host=host,
        port=port,
        unit=memory.unit(),
    )
    report = _planned(source, planned, result)
    if server.load is not None:
        report = _loaded(report, server.load, server.key(result.out), model_name, server.timeout)
    if result.json:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report)


def _check_task(source: Path | None, out: Path | None, gpus: str | None, load: str | None) -> None:
    if source is None and load is None:
        raise UsageError("nothing is given to deploy", fix="Give OUT with --gpus and --out, or --load URL with --out")
    if source is None and (gpus is not None or out is None):
        raise UsageError(
            "--load needs a plan", fix="Give the --out of an earlier deploy tabby alone, or OUT with --gpus"
        )
    if source is not None and gpus is None:
        raise UsageError("no GPUs are given", fix="Give --gpus, as in --gpus 6x24GiB")
    if source is not None and out is None and load is None:
        raise UsageError("there is no place for the files", fix="Give --out FOLDER, or --load URL")


def _planned(source: Path | None, planned: DeployOptions, result: _WrittenFlags) -> DeployReport:
    from exltune.pipeline.deployment.deploy import plan_deployment, read_deployment, write_deployment
    from exltune.schema.deploy import DeployReport

    if source is None:
        assert result.out is not None
        return DeployReport(deployment=read_deployment(result.out))
    deployment = plan_deployment(source, planned)
    if result.out is None:
        return DeployReport(deployment=deployment)
    return write_deployment(deployment, result.out, force=result.force)


def _loaded(
    report: DeployReport, url: str, key: SecretStr | None, model_name: str | None, timeout: float
) -> DeployReport:
    from exltune.pipeline.deployment.deploy_load import load_deployment

    served = load_deployment(
        report.deployment, url, key, model_name=model_name, timeout=timeout, reporter=RichReporter()
    )
    return report.model_copy(update={"served": served})


def _show(report: DeployReport) -> None:
    deployment = report.deployment
    for path in report.files:
        typer.echo(path)
    if report.kept_tokens:
        typer.echo("The keys are those of the deployment that was there.")
    for line in _lines(deployment):
        typer.echo(with_options(line))
    if report.served is not None:
        served = report.served
        typer.echo(f"{served.url} serves {served.model_name} as planned and says: {' '.join(served.text.split())}")


def _lines(deployment: Deployment) -> list[str]:
    settings = deployment.settings
    cards = len(deployment.plan.per_gpu)
    split = "tensor parallel" if settings.tensor_parallel else "layer by layer"
    lines = [
        f"{deployment.model_name} at {deployment.plan.bpw:.3f} bpw on {cards} {'card' if cards == 1 else 'cards'}, "
        f"{split}: {settings.max_seq_len:,} tokens of context, cache {settings.cache_mode}, chunks of "
        f"{settings.chunk_size:,}."
    ]
    return lines + [f"{note}." for note in deployment.notes]

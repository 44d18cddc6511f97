"""`exltune deploy`: the commands and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import memory, options
from exltune.cli.console import RichReporter, errors_in_one_line, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from exltune.pipeline.deployment.deploy import DeployOptions
    from exltune.pipeline.deployment.draft import DraftOptions
    from exltune.schema.deploy import Deployment, DeployReport

deploy = typer.Typer(name="deploy", help="Serve a quant as it was planned.", no_args_is_help=True)


@deploy.callback()
def root() -> None:
    """Serve a quant as it was planned."""


_Source = Annotated[
    Path | None,
    typer.Argument(metavar="OUT", help="EXL3 directory; or a recipe or config of one to come.", show_default=False),
]
_DeployOut = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for TabbyAPI's files.", show_default=False)
]
_Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Bits of keys and values, 5,4 or fp16; else the recipe's.", show_default=False),
]
_Context = Annotated[
    int | None, typer.Option("--context", help="Tokens of the cache; else the most that fit.", show_default=False)
]
_Slots = Annotated[int, typer.Option("--slots", help="Sequences at a time (max_batch_size).")]
_ManualSplit = Annotated[
    bool, typer.Option("--manual-split", help="Limit each card to what --gpus says (gpu_split) instead of autosplit.")
]
_Draft = Annotated[Path | None, typer.Option("--draft", help="EXL3 directory of a draft model.", show_default=False)]
_Mtp = Annotated[bool, typer.Option("--mtp", help="Draft with the quant's own MTP layer.")]
_Ngram = Annotated[bool, typer.Option("--ngram", help="Draft with n-grams of the text so far.")]
_DraftTokens = Annotated[
    int | None, typer.Option("--draft-tokens", help="Tokens to draft at a time.", show_default=False)
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
_Base = Annotated[
    Path | None, typer.Option("--model", help="Model or config that a recipe belongs to.", show_default=False)
]
_Calibrate = Annotated[
    Path | None, typer.Option("--calibrate", help="Readings of a real machine (JSON).", show_default=False)
]
_ToolFormat = Annotated[
    str | None, typer.Option("--tool-format", help="TabbyAPI's parser of tool calls.", show_default=False)
]
_Reasoning = Annotated[
    bool | None, typer.Option("--reasoning/--no-reasoning", help="Split <think> blocks off.", show_default=False)
]
_Host = Annotated[str, typer.Option("--host", help="Address of this machine that the container is published on.")]
_Port = Annotated[int, typer.Option("--port", help="Port of this machine.")]
_Load = Annotated[
    str | None,
    typer.Option("--load", metavar="URL", help="Load it on this running server and check it.", show_default=False),
]
_ApiTokens = Annotated[
    Path | None,
    typer.Option("--api-tokens", help="The server's api_tokens.yml; else the one in --out.", show_default=False),
]
_AdminKeyFile = Annotated[
    Path | None, typer.Option("--admin-key-file", help="A file with the admin key alone.", show_default=False)
]
_Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a byte from the server.")]


@deploy.command()
def tabby(
    source: _Source = None,
    out: _DeployOut = None,
    gpus: memory.Gpus = None,
    context: _Context = None,
    cache: _Cache = None,
    chunk: memory.Chunk = memory.CHUNK,
    slots: _Slots = memory.SLOTS,
    tensor_parallel: memory.TensorParallel = False,
    manual_split: _ManualSplit = False,
    offload_layers: memory.OffloadLayers = 0,
    draft: _Draft = None,
    mtp: _Mtp = False,
    ngram: _Ngram = False,
    draft_tokens: _DraftTokens = None,
    models: _Models = None,
    model_name: _ModelName = None,
    bits: _Bits = None,
    model: _Base = None,
    calibrate: _Calibrate = None,
    tool_format: _ToolFormat = None,
    reasoning: _Reasoning = None,
    host: _Host = "127.0.0.1",
    port: _Port = 5000,
    load: _Load = None,
    api_tokens: _ApiTokens = None,
    admin_key_file: _AdminKeyFile = None,
    timeout: _Timeout = 300.0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write TabbyAPI's files from a plan, or load the plan on a running TabbyAPI. Exit code 4 where it does not fit."""
    with errors_in_one_line(json):
        from exltune.pipeline.deployment.deploy import DeployOptions, Split

        _check_task(source, out, gpus, load)
        wish = DeployOptions(
            gpus=_cards(gpus),
            context=context,
            cache=None if cache is None else memory.cache_bits(cache),
            chunk=chunk,
            slots=slots,
            split=Split(tensor_parallel, manual_split),
            offload_layers=offload_layers,
            draft=_draft_wish(draft, mtp, ngram, draft_tokens),
            bits=bits,
            model=model,
            readings=calibrate,
            models_dir=models,
            model_name=model_name,
            tool_format=tool_format,
            reasoning=reasoning,
            host=host,
            port=port,
            unit=memory.shown_unit(gpus),
        )
        report = _planned(source, wish, out, force)
        if load is not None:
            report = _loaded(report, load, _key(api_tokens, admin_key_file, out), model_name, timeout)
        if json:
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


def _cards(gpus: str | None) -> tuple[int, ...]:
    from exltune.budget import parse_gpus

    return () if gpus is None else parse_gpus(gpus)


def _draft_wish(draft: Path | None, mtp: bool, ngram: bool, tokens: int | None) -> DraftOptions | None:
    from exltune.pipeline.deployment.draft import DraftOptions

    if (draft is not None) + mtp + ngram > 1:
        raise UsageError("--draft, --mtp and --ngram are three ways to draft", fix="Give one of them")
    if draft is not None:
        return DraftOptions("model", draft, tokens)
    if mtp or ngram:
        return DraftOptions("mtp" if mtp else "ngram", None, tokens)
    if tokens is not None:
        raise UsageError("--draft-tokens goes with --draft, --mtp or --ngram", fix="Give one of them")
    return None


def _planned(source: Path | None, wish: DeployOptions, out: Path | None, force: bool) -> DeployReport:
    from exltune.pipeline.deployment.deploy import plan_deployment, read_deployment, write_deployment
    from exltune.schema.deploy import DeployReport

    if source is None:
        assert out is not None
        return DeployReport(deployment=read_deployment(out))
    deployment = plan_deployment(source, wish)
    return DeployReport(deployment=deployment) if out is None else write_deployment(deployment, out, force=force)


def _key(api_tokens: Path | None, admin_key_file: Path | None, out: Path | None) -> SecretStr | None:
    """The admin key; None where no file is named and none lies in `out`: a server may have its keys disabled."""
    from exltune.publish.tabby_tokens import TOKENS, read_key_file, read_tokens

    if api_tokens is not None and admin_key_file is not None:
        raise UsageError("--api-tokens and --admin-key-file both name the key", fix="Give one of them")
    if admin_key_file is not None:
        return read_key_file(admin_key_file)
    if api_tokens is None and (out is None or not (out / TOKENS).is_file()):
        return None
    return read_tokens(api_tokens or (out or Path()) / TOKENS).admin_key


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
        typer.echo(line)
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

"""The files of a TabbyAPI deployment, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from exltune.publish.tabby_fields import TABBYAPI_COMMIT
from exltune.publish.tabby_tokens import TOKENS
from exltune.requirements import lowest
from exltune.schema.deploy import Deployment

CONFIG, MODEL_CONFIG = "config.yml", "tabby_config.yml"
COMPOSE, DOCKERFILE = "docker-compose.yml", "Dockerfile"
_WRITTEN = "# Written by exltune deploy tabby.\n"
_CONTAINER_PORT = 5000

_MODEL_CONFIG_HEAD = (
    _WRITTEN
    + "# TabbyAPI reads this file in the model's folder at every load; it wins over config.yml and load requests.\n"
)


def dockerfile() -> str:
    """TabbyAPI at a pinned commit on a pinned CUDA image, with a pinned exllamav3."""
    exllamav3 = lowest("exllamav3")
    return f"""\
{_WRITTEN}# A devel image: PyPI's exllamav3 has no compiled kernels and builds them with nvcc at the first start.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update && apt-get install -y --no-install-recommends \\
    build-essential ca-certificates curl git python3.12 python3.12-dev python3.12-venv \\
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH" TORCH_EXTENSIONS_DIR=/app/extensions

WORKDIR /app
RUN git init -q . \\
    && git fetch -q --depth 1 https://github.com/theroyallab/tabbyAPI {TABBYAPI_COMMIT} \\
    && git checkout -q FETCH_HEAD
# TabbyAPI's own torch 2.9.0 for CUDA 12.8, with the exllamav3 1.4.2 that it pins.
RUN pip install --no-cache-dir ".[cu12]"
# exllamav3 1.4.2 does not know the half-integer widths (1.5, 2.5 and 3.5 bits) and refuses to load a mix that has
# them; {exllamav3} loads them, and exltune's directories are tested with it. torch stays as it is.
RUN pip freeze | grep -E '^torch(==| @)' > /tmp/torch.txt \\
    && pip install --no-cache-dir -c /tmp/torch.txt "exllamav3=={exllamav3}"

EXPOSE {_CONTAINER_PORT}
ENTRYPOINT ["python3"]
# All interfaces of the container; docker-compose.yml says which of the host's.
CMD ["main.py", "--host", "0.0.0.0", "--port", "{_CONTAINER_PORT}"]
"""


def model_section(deployment: Deployment) -> dict[str, Any]:
    """The plan in the `model` section of config.yml and tabby_config.yml."""
    settings = deployment.settings
    section: dict[str, Any] = {
        "backend": "exllamav3",
        "max_seq_len": settings.max_seq_len,
        "cache_size": settings.cache_size,
        "cache_mode": _Quoted(settings.cache_mode),
        "chunk_size": settings.chunk_size,
        "max_batch_size": settings.max_batch_size,
        "tensor_parallel": settings.tensor_parallel,
    }
    if settings.gpu_split:
        section |= {"gpu_split_auto": False, "gpu_split": list(settings.gpu_split)}
    else:
        section |= {"gpu_split_auto": True, "autosplit_reserve": list(settings.autosplit_reserve)}
    if settings.cpu_moe_offload_layers:
        section["cpu_moe_offload_layers"] = settings.cpu_moe_offload_layers
    if settings.reasoning is not None:
        section["reasoning"] = settings.reasoning
    if settings.tool_format is not None:
        section["tool_format"] = settings.tool_format
    return section


def draft_section(deployment: Deployment) -> dict[str, Any]:
    """The `draft_model` section."""
    draft = deployment.draft
    if draft is None:
        return {"draft_mode": "disabled"}
    section: dict[str, Any] = {"draft_mode": draft.mode}
    if draft.directory is not None:
        path = Path(draft.directory)
        section |= {"draft_model_dir": str(path.parent), "draft_model_name": path.name}
    if draft.mode != "ngram":
        section["draft_cache_mode"] = "FP16"
    if draft.num_tokens is not None:
        section["draft_num_tokens"] = draft.num_tokens
    return section


def config_text(deployment: Deployment) -> str:
    """config.yml: the server, and the model that it loads when it starts."""
    model = {"model_dir": deployment.models_dir, "model_name": deployment.model_name} | model_section(deployment)
    network = {"host": "127.0.0.1", "port": deployment.port, "disable_auth": False, "api_servers": ["OAI"]}
    return _WRITTEN + _yaml({"network": network, "model": model, "draft_model": draft_section(deployment)})


def model_config_text(deployment: Deployment) -> str:
    """The model's own tabby_config.yml."""
    return _MODEL_CONFIG_HEAD + _yaml({"model": model_section(deployment), "draft_model": draft_section(deployment)})


def compose_text(deployment: Deployment) -> str:
    """docker-compose.yml: the model at the path that it has on the host, so that config.yml holds for both."""
    model = str(Path(deployment.models_dir) / deployment.model_name)
    draft = [] if deployment.draft is None or deployment.draft.directory is None else [deployment.draft.directory]
    mounts = {f"./{CONFIG}": f"/app/{CONFIG}", f"./{TOKENS}": f"/app/{TOKENS}"} | {
        path: path for path in (model, *draft)
    }
    cards = {"driver": "nvidia", "count": len(deployment.plan.per_gpu), "capabilities": ["gpu"]}
    service = {
        "build": ".",
        "ports": [f"{_bracketed(deployment.host)}:{deployment.port}:{_CONTAINER_PORT}"],
        "restart": "unless-stopped",
        "shm_size": "8g",
        "ulimits": {"memlock": -1, "nofile": 1048576},
        "healthcheck": {
            "test": ["CMD", "curl", "-f", f"http://127.0.0.1:{_CONTAINER_PORT}/health"],
            "interval": "30s",
            "timeout": "10s",
            "retries": 3,
            # TabbyAPI answers only once its first model is loaded, and the first start compiles kernels before that.
            "start_period": "60m",
        },
        "deploy": {"resources": {"reservations": {"devices": [cards]}}},
        "volumes": [*(_mount(*pair) for pair in mounts.items()), _EXTENSIONS],
    }
    return _WRITTEN + _yaml({"services": {"tabbyapi": service}, "volumes": {"extensions": {}}})


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


#: Compiled kernels outlive the container.
_EXTENSIONS = {"type": "volume", "source": "extensions", "target": "/app/extensions"}


def _mount(source: str, target: str) -> dict[str, Any]:
    # Compose would make an empty directory of a path that is not there, and reads $ as a variable.
    source, target = source.replace("$", "$$"), target.replace("$", "$$")
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": {"create_host_path": False}}


class _Quoted(str):
    """A string that stands in quotes: 5,4 is a number to some readers of YAML."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """With quotes where they were asked for."""


_Dumper.add_representer(_Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)

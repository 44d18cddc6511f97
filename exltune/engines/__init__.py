"""All that costs compute: scoring mixes, capturing Hessians, quantizing a linear."""

from exltune.engines.base import (
    Engine,
    LayerCapture,
    Progress,
    Resources,
    ScoreStats,
    auto_engine,
    engine_names,
    open_engine,
)

__all__ = [
    "Engine",
    "LayerCapture",
    "Progress",
    "Resources",
    "ScoreStats",
    "auto_engine",
    "engine_names",
    "open_engine",
]

"""Tensors, roles, groups and ties of a model, from its config.json and safetensors headers alone."""

from exltune.inventory.architectures import ARCHITECTURES, Architecture, architecture
from exltune.inventory.attention import cache_layers, context_limit
from exltune.inventory.config import ModelShape, model_shape, read_config
from exltune.inventory.content import group_hashes
from exltune.inventory.identity import check_embedding, check_same_model, model_fingerprint
from exltune.inventory.inventory import (
    LEVELS,
    cache_half,
    groups_at_level,
    inventory_from_config,
    is_exl3,
    load_inventory,
    load_unquantized,
    unquantized_tensor_names,
)
from exltune.inventory.layout import unquantized_shapes

__all__ = [
    "ARCHITECTURES",
    "LEVELS",
    "Architecture",
    "ModelShape",
    "architecture",
    "cache_half",
    "cache_layers",
    "check_embedding",
    "check_same_model",
    "context_limit",
    "group_hashes",
    "groups_at_level",
    "inventory_from_config",
    "is_exl3",
    "load_inventory",
    "load_unquantized",
    "model_fingerprint",
    "model_shape",
    "read_config",
    "unquantized_shapes",
    "unquantized_tensor_names",
]

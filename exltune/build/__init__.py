"""Model directories: base quants from finished tensors, mixes spliced from base quants."""

from exltune.build.assemble import assemble_quant
from exltune.build.recipes import resolve_recipe
from exltune.build.splice import splice_model

__all__ = ["assemble_quant", "resolve_recipe", "splice_model"]

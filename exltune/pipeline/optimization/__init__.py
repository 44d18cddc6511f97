"""From a measurement to a recipe, and what a recipe says."""

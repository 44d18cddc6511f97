"""From a measurement to a recipe, and its explanation."""

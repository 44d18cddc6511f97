"""Memory of a model: weights, cache, transients, layer by layer."""

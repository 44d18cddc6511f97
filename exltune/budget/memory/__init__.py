"""What a model takes: weights, cache, transients, layer by layer."""

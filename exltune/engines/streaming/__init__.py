"""Shared by engines that stream a model layer by layer: the prefix tree, states, results, weights."""

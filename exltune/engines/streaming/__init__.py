"""What engines that stream a model layer by layer share: the prefix tree, states, results, weights."""

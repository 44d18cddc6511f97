"""The effect of bits on a whole mix: costs of swaps, and the law that learns from scored mixes."""

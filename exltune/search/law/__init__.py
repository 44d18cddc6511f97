"""What bits do to a whole mix: costs of swaps, and the law that learns from scored mixes."""

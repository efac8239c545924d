"""Tune what a plan leaves open before the run: micro-batches, draws, directions."""

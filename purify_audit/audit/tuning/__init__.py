"""What a plan leaves open is settled before the run: sizes of micro-batches, draws, directions."""

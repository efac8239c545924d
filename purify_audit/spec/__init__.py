"""What decides the numbers of an audit, as validated records. No torch."""

"""From raw rows to estimates with confidence intervals. No torch."""

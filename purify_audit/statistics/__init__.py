"""Rows, estimates and confidence intervals. No torch."""

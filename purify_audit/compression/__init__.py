"""Measurement of the compression rate, and checks before it."""

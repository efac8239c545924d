"""Markdown reports, step summaries and model-card sections."""

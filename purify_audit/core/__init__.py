"""Errors, records, digests, findings and addressed noise."""

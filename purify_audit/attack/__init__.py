"""Aligned EOT attacks on a purifier with a classifier behind it, and what they are worth."""

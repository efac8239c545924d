"""Aligned EOT attacks on a purifier in front of a classifier, and their sanity checks."""

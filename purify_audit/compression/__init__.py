"""Measure how a purifier compresses the neighbourhood of images."""

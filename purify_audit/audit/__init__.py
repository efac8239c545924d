"""Carry out audits: compression, attacks, cross-checks, sweeps, and their storage."""

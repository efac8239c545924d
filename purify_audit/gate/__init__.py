"""Judging a report by a policy: PASS, FAIL or INCONCLUSIVE."""

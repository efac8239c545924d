"""Run a user's own purifier code and capture its randomness."""

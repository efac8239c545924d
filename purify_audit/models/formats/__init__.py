"""Other people's checkpoints, one file a format, recognised by the fingerprint of their keys."""

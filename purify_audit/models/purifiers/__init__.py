"""The families of purifiers, one file each."""

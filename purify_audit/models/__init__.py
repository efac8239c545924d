"""Open, load, convert and export purifiers and classifiers."""

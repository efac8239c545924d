"""Image sets, and one reader for each image format."""

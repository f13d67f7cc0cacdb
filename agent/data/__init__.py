"""Local data sets: the catalog, and their reading into arrays."""

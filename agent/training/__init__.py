"""The training worker: records in, one flat update out."""

"""The Flower ServerApp that drives a study's rounds."""

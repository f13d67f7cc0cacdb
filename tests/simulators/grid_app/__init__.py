"""A Flower app for tests; its inner package is what the SuperLink runs."""

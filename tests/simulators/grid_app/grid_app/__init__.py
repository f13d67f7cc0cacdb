"""A ServerApp that does what a test tells it to, over a connection to the test's own port."""

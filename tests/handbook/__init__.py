"""Pages of docs/ that are made from the code: `python -m tests.handbook` writes them, a test sees to it."""

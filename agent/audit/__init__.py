"""The append-only record of what happened on this box."""

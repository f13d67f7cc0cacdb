"""The technician's commands, one file a group."""

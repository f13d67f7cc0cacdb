"""The one signed-statement format of the project."""

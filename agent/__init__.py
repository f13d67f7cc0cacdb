"""All that runs on a hospital's box."""

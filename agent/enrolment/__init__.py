"""From a token to an enrolled box."""

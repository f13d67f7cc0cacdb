"""All that a consortium runs: authority, coordinator, and the tools around them."""

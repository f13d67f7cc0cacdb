"""Real software played on loopback: servers and devices that tests, bench and demonstration start and stop."""

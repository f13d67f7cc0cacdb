"""What the servers of pages and of boxes share: how long they wait, how they listen, what browsers load."""

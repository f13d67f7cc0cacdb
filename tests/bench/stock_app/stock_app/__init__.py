"""FedAvg over one array, as a Flower user writes it: the peer of our rounds."""

"""Never runs: a node of ours answers messages with its own code."""

from flwr.clientapp import ClientApp

app = ClientApp()

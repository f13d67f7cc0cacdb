"""The registrar: enrols boxes, and serves the repository that they trust."""

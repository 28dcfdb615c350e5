"""The hub's API server: one lean client, and the list-and-watch loop on it."""

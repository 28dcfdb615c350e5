"""A spoke for tests: its API server, rights, KMM played by hand, and a work agent, OCM's own or our stand-in."""

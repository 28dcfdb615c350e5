"""A whole hub on one machine: API server, NATS, Postgres and registry on loopback, for tests, demo and benchmarks."""

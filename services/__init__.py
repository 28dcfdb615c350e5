"""The four services. Each is a process of its own; none imports another."""

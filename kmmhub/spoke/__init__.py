"""What installs KMM on spokes, as objects for the hub's API server. Values in, values out; nothing here does I/O."""

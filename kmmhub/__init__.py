"""The command line: one entry point for the services and for the people who run them."""

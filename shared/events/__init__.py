"""What the services tell each other: keys, never decisions. Whoever gets a message reads the stored state."""

"""What the services tell each other. A message carries keys, never a decision: whoever gets it reads the stored state."""

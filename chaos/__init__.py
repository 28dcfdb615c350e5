"""The real services and servers as processes, a seeded nemesis that breaks them, and an oracle that watches."""

"""From the outbox in Postgres to the bus."""

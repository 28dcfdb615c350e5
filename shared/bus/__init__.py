"""NATS JetStream: the wake-up and the spreading of work. It may be wiped at any time; Postgres is the truth."""

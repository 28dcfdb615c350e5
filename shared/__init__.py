"""What more than one service needs: the domain, the event schemas, and the adapters to Postgres, NATS, Kubernetes and registries."""

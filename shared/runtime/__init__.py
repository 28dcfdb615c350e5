"""How a process of ours lives: settings, logs, health, metrics, shutdown. No word of the domain stands here."""

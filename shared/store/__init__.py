"""Postgres, the truth: tables, migrations, and the statements that read and write them. No decisions are taken here."""

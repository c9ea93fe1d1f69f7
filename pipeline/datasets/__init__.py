"""Event logs to run on: a real one fetched from the package index, and a seeded synthetic one."""

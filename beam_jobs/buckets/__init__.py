"""Validated events: one bucket of users per file, in order, each event in its split."""

"""Proof that a servable is right, in a fresh process, by brute force and by every loader; its metrics."""

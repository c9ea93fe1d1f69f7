"""Draws of negatives of every kind, and how often each item is expected among them."""

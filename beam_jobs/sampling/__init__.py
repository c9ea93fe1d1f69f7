"""Draws of negatives, and how often each item is expected among them."""

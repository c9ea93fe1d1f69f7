"""Measurements beside a peer or a baseline in the same run. Never part of the tests."""

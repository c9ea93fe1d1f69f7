"""Exact ranking, its metrics, and the baselines."""

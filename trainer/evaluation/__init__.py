"""Exact ranking and merge, their metrics, the baselines, and how many places cold items get."""

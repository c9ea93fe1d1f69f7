"""Measurements of speed beside a baseline, and of what survives kills, faults and load. Tests run parts of some."""

"""Event logs to run on: a real one fetched from the package index, published sequence files, and two seeded logs."""

KIND = "dataset"
"""Of their manifests."""

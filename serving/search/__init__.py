"""The groups' indexes: built, tuned, stored, and searched in the graph."""

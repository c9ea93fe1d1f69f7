"""The groups' indexes: built, tuned, stored, and searched in the graph, in two rounds for a merge by score."""

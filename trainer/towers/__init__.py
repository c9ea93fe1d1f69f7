"""The two towers, and the user vectors of a step."""

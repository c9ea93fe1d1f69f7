"""Tables of user and item features: reading and checking them, and their way through TFT."""

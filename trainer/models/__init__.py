"""Models, made of towers and losses, and their files."""

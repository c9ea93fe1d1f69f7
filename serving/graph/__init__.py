"""The servable's graph around the search: from a request's raw ids and features to one merged list."""

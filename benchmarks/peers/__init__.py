"""Other engines, each a program of its own that prints one JSON object."""

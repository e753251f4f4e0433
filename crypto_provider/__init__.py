"""The crypto provider (trusted dealer): deals correlated randomness, sees no image and no weight."""

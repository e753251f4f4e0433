"""The crypto provider (dealer): deals correlated randomness, sees no image and no weight."""

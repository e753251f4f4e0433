"""Known answers of the protocol; :mod:`tests.vectors.generate` says how they are made."""

"""The three parties' walks over a plan. No network, no disk: bytes in, bytes out, one channel."""

"""The channel between two parties: in memory, and over gRPC with mutual TLS."""

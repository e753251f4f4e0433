"""Bytes from outside, damaged in every way: ``python -m tests.fuzz --help``."""

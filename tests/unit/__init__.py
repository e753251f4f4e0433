"""Tests of single modules, in the folders of what they test."""

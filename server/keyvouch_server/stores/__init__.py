"""Implementations of the `Store` port, all held to one contract test."""

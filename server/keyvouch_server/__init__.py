"""The Keyvouch verification server."""

__version__ = "0.1.0"

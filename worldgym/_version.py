"""The version number; this module imports nothing, so that build tools can read it without the dependencies."""

__version__ = "0.1.0"

"""Imagined environments in other libraries, and wrappers around them."""

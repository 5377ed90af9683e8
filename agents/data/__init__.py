"""Demonstrations as training rows."""

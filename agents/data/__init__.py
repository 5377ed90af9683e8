"""Conversion of demonstrations into training rows."""

"""Policies behind a server: the protocol of openpi in both directions."""

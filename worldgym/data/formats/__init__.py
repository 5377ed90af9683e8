"""Readers of other people's recordings: what their loosely typed fields mean, where their frames are."""

"""Runs of several steps: the demo, fine-tuning, collection, and what their commands share."""

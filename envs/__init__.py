"""Simulated environments and their adapters to `worldgym`."""

"""Adapters that run imagined environments in other RL libraries, and wrappers around the environments."""

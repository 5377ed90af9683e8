"""Whole programs in one file each, to be read, copied and changed.

Example::

    python -m experiments.examples.ppo --help
"""

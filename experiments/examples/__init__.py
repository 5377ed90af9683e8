"""Complete example programs, one file each, to read, copy and change.

Example::

    python -m experiments.examples.ppo --help
"""

"""The `worldgym` command line, its presets, the demo and the reports."""

import worldgym  # noqa: F401, makes module names of earlier versions importable

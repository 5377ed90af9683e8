"""The command line, presets, the demo and its report."""

import worldgym  # noqa: F401, makes earlier module names importable

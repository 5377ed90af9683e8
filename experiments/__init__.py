"""The command line, presets, the demo and its report."""

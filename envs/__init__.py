"""Software simulators and their adapters."""

"""The commands of `worldgym`, one module each: a frozen config dataclass and `run(config) -> int`."""

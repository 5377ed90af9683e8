"""One module a command of `worldgym`: a frozen config dataclass and `run(config) -> int`."""

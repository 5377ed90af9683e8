"""Small helpers that every part shares: optional imports, GL checks, shadowed packages, progress, atomic files."""

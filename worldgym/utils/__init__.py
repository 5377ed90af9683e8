"""Shared helpers: optional imports, OpenGL checks, shadowed packages, progress, atomic files."""

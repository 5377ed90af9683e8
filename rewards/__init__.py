"""Judges: who decides whether an instruction was fulfilled."""

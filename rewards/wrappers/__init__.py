"""Judges around other judges: cached, calibrated, composed."""

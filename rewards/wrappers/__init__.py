"""Judges that wrap other judges: cached, calibrated, composed."""

"""Training and calibration of judges."""

"""How judges are trained and calibrated."""

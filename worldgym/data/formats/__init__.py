"""Readers of dataset formats that worldgym did not write: LeRobot, BridgeData V2 and plain videos."""

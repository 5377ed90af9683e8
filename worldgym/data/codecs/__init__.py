"""Encoders and decoders of frames: PNG and mp4."""

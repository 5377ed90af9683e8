"""Judges that look at frames, latents or states: learned, open_clip, VLM, HTTP, reference, oracle."""

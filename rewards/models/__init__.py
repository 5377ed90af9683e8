"""Judges that read frames, latents or states: learned, latent, open_clip, VLM, HTTP, reference, oracle."""

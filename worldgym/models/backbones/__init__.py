"""World models on the video transformers of diffusers: Wan 2.2 and Cosmos-Predict 2 and 2.5."""

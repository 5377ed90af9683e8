"""Policies on transformers' image-text-to-text models (extra `vla`): configuration, inputs, heads, policy."""

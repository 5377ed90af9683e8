"""Trainers of the learned parts; `worldgym train tokenizer|world-model` call these."""

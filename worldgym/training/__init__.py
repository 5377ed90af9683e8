"""Trainers of tokenizers, world models and value predictors; `worldgym train tokenizer|world-model` calls them."""

"""The latent video world model: a tokenizer and block-causal dynamics, with object motion as an option.

Example::

    from worldgym.models import VideoWorldModel, WorldModelConfig
    model = VideoWorldModel(WorldModelConfig.preset("small").for_data(states, specs=specs))
"""

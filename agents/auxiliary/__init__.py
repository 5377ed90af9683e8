"""Auxiliary losses: a policy also learns what the future looks like, through tokens that no output reads.

A policy with `future_tokens` carries learned tokens behind its action queries. An auxiliary loss reads their hidden
states and compares them with later frames of the same episode. It has weights of its own, which are not saved with
the policy. Rows of video without actions carry this loss only.

* `flare`: the tokens agree with an encoding of the frame at the end of the chunk (FLARE, arXiv 2505.15659).
* `vla_jepa`: the tokens are latent actions, from which the features of later frames are predicted (VLA-JEPA, arXiv
  2602.10098).

Example::

    from agents.auxiliary.make import make_auxiliaries, settings_of, token_count
    settings = settings_of(["flare"], {"weight": 0.2})
    policy = VLAPolicy(VLAPolicyConfig.preset("small", future_tokens=token_count(settings)))
    SFT(auxiliaries=make_auxiliaries(settings, policy)).fit(policy, chunk_dataset(episodes, future=True))
"""

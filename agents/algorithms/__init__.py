"""Algorithms that improve a policy: SFT, GRPO, self-imitation, advantage conditioning, imagined RL."""

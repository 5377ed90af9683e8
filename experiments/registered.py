"""Registers the policies of this package by name; each is imported on first use."""

from __future__ import annotations

from worldgym.registry import POLICIES

POLICIES.register_lazily(keypoint_mlp="experiments.pipelines.keypoint_policy:KeypointPolicy")

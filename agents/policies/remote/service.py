"""A policy as a service: the protocol of openpi's policy server, for its clients and for `RemotePolicy`.

A request is one observation, or a batch of them. Its keys are those of one of openpi's examples, of worldgym, or given
by the caller. The reply has `actions`, `(K, A)` for one observation and `(B, K, A)` for a batch.

Example::

    Server(PolicyService(load_policy("runs/policy"))).serve_forever()
    # openpi_client.websocket_client_policy.WebsocketClientPolicy("127.0.0.1", 8000).infer(observation)["actions"]
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from agents.policies.remote.keys import PRESETS, KeyMap, fitting
from agents.policies.remote.pictures import resize_with_pad
from agents.policies.remote.policy import PROTOCOL
from worldgym import __version__
from worldgym.errors import ConfigError
from worldgym.imagination.policy_output import check_output
from worldgym.serving.server import Refusal
from worldgym.specs import Specs, specs_of

VERSION, OWN = 1, "worldgym"


class PolicyService:
    """Serves one policy to many clients; it keeps nothing of a request.

    Args:
        policy: implements `worldgym.protocols.Policy`.
        keys: names of the inputs; None takes those of the first of `worldgym`, `libero`, `droid` and `aloha` that fit a
            request.
        actions: `units` replies in the units of the policy's `ActionSpec`, `normalised` in [-1, 1].
        temperature: sampling temperature of requests that have none; 0 is greedy.
        name: name of the policy in the metadata.

    Raises:
        ConfigError: `actions="units"`, and the policy has no `ActionSpec`.
    """

    def __init__(
        self,
        policy: Any,
        *,
        keys: KeyMap | None = None,
        actions: Literal["units", "normalised"] = "normalised",
        temperature: float = 0.0,
        name: str = "",
    ) -> None:
        self.policy, self.keys, self.temperature = policy, keys, temperature
        self.known = isinstance(
            getattr(policy, "specs", None), Specs
        )  # else inputs are passed on as they are
        self.specs = specs_of(policy)
        self.units = actions == "units"
        if actions not in ("units", "normalised") or (self.units and self.specs.action is None):
            raise ConfigError(
                f"actions is {actions!r}; expected 'normalised', or 'units' for a policy with an ActionSpec"
            )
        self.metadata: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": VERSION,
            "worldgym": __version__,
            "name": name,
            "specs": self.specs.to_dict(),
            "chunk": int(policy.chunk),
            "actions": actions,
            "batch": True,
        }

    def open(self) -> PolicyService:
        """A session: the service itself, since it has no state."""
        return self

    def close(self) -> None:
        """A connection has ended."""

    def __call__(self, message: Any) -> dict[str, Any]:
        """Answer a request.

        Raises:
            Refusal: the observation lacks a part, or has another shape than the policy reads.
        """
        if not isinstance(message, Mapping):
            raise Refusal(400, f"got {type(message).__name__}; expected a map with an observation")
        began = time.perf_counter()
        keys = self.keys or fitting(message)
        if message.get("names") == OWN or (keys is not None and keys == KeyMap.named(OWN)):
            more = {key: key for key in message if isinstance(key, str) and key.startswith("image_")}
            keys = KeyMap({**PRESETS[OWN], **more})
        if keys is None or (missing := keys.missing(message)):
            wanted = (
                f"{', '.join(missing)} too"
                if keys is not None
                else " or ".join(f"{', '.join(PRESETS[name])} ({name})" for name in PRESETS)
            )
            raise Refusal(
                400,
                f"got the keys {', '.join(map(str, message))}; expected {wanted}. Start the server with "
                "--keys KEY=PART for other names",
            )
        observation, single = self._observation(keys.from_message(message))
        heat, seed = _heat(message.get("temperature", self.temperature)), message.get("seed")
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        with torch.inference_mode():
            output = self.policy.act(observation, temperature=heat, generator=generator)
        actions = check_output(output, self.policy, observation).actions.float().cpu().numpy()
        if self.units:
            assert self.specs.action is not None
            actions = self.specs.action.denormalise(actions)
        return {
            "actions": actions[0] if single else actions,
            "policy_timing": {"infer_ms": 1000 * (time.perf_counter() - began)},
        }

    def _observation(self, parts: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The batch for `Policy.act`, and whether the request was a single observation."""
        spec = self.specs.observation
        single = parts["image"].ndim == 3
        sizes = {spec.camera_keys[camera.name]: camera.size for camera in spec.cameras} if self.known else {}
        out: dict[str, Any] = {}
        for key in sizes or [part for part in parts if part.startswith("image")]:
            if key not in parts:
                raise Refusal(
                    400, f"no image for {key}, which this policy reads; the keys map names where it is"
                )
            image = parts[key][None] if single else parts[key]
            out[key] = torch.from_numpy(resize_with_pad(image, *sizes[key]) if sizes else image)
        count = len(parts["image"]) if not single else 1
        if count < 1:
            raise Refusal(400, "got a batch of 0 observations; expected at least one")
        state = parts["state"] if "state" in parts else np.zeros((count, 0), np.float32)
        state = state[None] if single and state.ndim == 1 else state
        wanted = f"({'' if single else f'{count}, '}{spec.state_dim},)"
        if len(state) != count or state.ndim != 2 or (self.known and state.shape[1] != spec.state_dim):
            raise Refusal(
                400,
                f"the state has the shape {tuple(state.shape[1:] if single else state.shape)}; expected {wanted}: "
                f"{', '.join(field.name for field in spec.state) or 'no numbers'}",
            )
        if not np.isfinite(state).all():
            raise Refusal(400, "the state holds NaN or infinity; expected finite numbers")
        texts = parts["instruction"]
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, f"the instruction is {type(parts['instruction']).__name__}; expected one text a row")
        if len(texts) != count:
            raise Refusal(400, f"{len(texts)} instructions for {count} images; expected one text for each")
        return {**out, "state": torch.from_numpy(np.ascontiguousarray(state)), "instruction": texts}, single


def _heat(told: Any) -> float | dict[str, float]:
    """A sampling temperature: a number, or one for each component."""
    numbers = list(told.values()) if isinstance(told, Mapping) else [told]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
            raise Refusal(400, f"temperature is {told!r}; expected a number >= 0, or one for each component")
    return {str(k): float(v) for k, v in told.items()} if isinstance(told, Mapping) else float(told)

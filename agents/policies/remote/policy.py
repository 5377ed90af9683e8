"""`RemotePolicy`: a policy on a server that speaks openpi's protocol, used like one in this process.

Example::

    # openpi: uv run scripts/serve_policy.py --env LIBERO
    policy = RemotePolicy(RemotePolicyConfig("ws://127.0.0.1:8000", keys="libero", chunk=5))
    worldgym eval --world imagined --policy "ws://127.0.0.1:8000?keys=libero&chunk=5"
"""

from __future__ import annotations

import dataclasses
import json
import logging
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import Self

from agents.policies.lerobot import LeRobotPolicyMixin
from agents.policies.remote.keys import KeyMap
from agents.policies.remote.pictures import resize_with_pad
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import Observation, PolicyOutput, Temperature
from worldgym.registry import TYPE
from worldgym.serving.address import Address
from worldgym.serving.client import Client, ClientSettings
from worldgym.specs import Specs
from worldgym.utils.arrays import host_array
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder

logger = logging.getLogger(__name__)
PROTOCOL = "worldgym.policy"
REMEDY = "write one with save_pretrained, or give the address of a server"


@dataclass(frozen=True)
class RemotePolicyConfig:
    """A server, and how to talk to its policy.

    Args:
        url: address, for example `ws://127.0.0.1:8000`.
        keys: names of the inputs: `worldgym`, `libero`, `droid`, `aloha`, or `KEY=PART,KEY=PART`
            (`agents.policies.remote.keys`).
        chunk: how many actions of each reply are executed, K; None takes what the server's metadata say.
        actions: `normalised` if the server's actions are in [-1, 1], as those of a dataset of worldgym are; `units` if
            they are in the units of the robot's `ActionSpec`.
        image_size: side of the square images that are sent, in pixels, padded where they are not square; None sends
            them as they are.

    Raises:
        ConfigError: a setting has an invalid value.
    """

    url: str
    keys: str = "worldgym"
    chunk: int | None = None
    actions: Literal["normalised", "units"] = "normalised"
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Validate."""
        Address.parse(self.url)
        KeyMap.parse(self.keys)
        if self.actions not in ("normalised", "units"):
            raise ConfigError(f"actions is {self.actions!r}; expected 'normalised' or 'units'")
        for name in ("chunk", "image_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number >= 1, or none")

    @classmethod
    def parse(cls, text: str) -> RemotePolicyConfig:
        """Settings in the query of an address: `ws://HOST:PORT?keys=libero&chunk=5`.

        Raises:
            ConfigError: a setting is unknown, or has an invalid value.
        """
        address, _, query = text.partition("?")
        given: dict[str, Any] = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        known = [field.name for field in dataclasses.fields(cls) if field.name != "url"]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"{text} has the setting {unknown[0]!r}; expected one of {', '.join(known)}")
        for name in ("chunk", "image_size"):
            if name in given:
                given[name] = int(given[name]) if given[name].isdecimal() else given[name]
        return cls(address, **given)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RemotePolicyConfig)}


class RemotePolicy(LeRobotPolicyMixin):
    """A policy for evaluation, audits and rollouts. It has no log-probabilities, so that RL can't train it.

    A server of openpi gets one observation a request, and chooses its own sampling; a `worldgym serve policy` gets
    whole batches, with the temperature and a seed.

    Args:
        config: the server and its settings; also a dict of them.
        specs: specs of the robot, if the server's metadata have none; needed for `actions="units"`.
        token_env: environment variable with the server's token; None takes the one that `WORLDGYM_TOKENS` names.
        settings: time limits.

    Raises:
        ConfigError: the length of the chunk or the robot's specs are not known.
        ServerUnavailableError: no server answers.
    """

    def __init__(
        self,
        config: RemotePolicyConfig | Mapping[str, Any],
        *,
        specs: Specs | None = None,
        token_env: str | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        if not isinstance(config, RemotePolicyConfig):
            config = RemotePolicyConfig(**dict(config))
        self.config, self.map = config, KeyMap.parse(config.keys)
        self.client = Client(config.url, token_env=token_env, settings=settings)
        told = self.client.metadata
        self.ours = told.get("protocol") == PROTOCOL
        if not self.ours and str(told.get("protocol", "")).startswith("worldgym."):
            self.client.close()
            raise ConfigError(
                f"{config.url} serves {told['protocol']!r}, expected a policy; type: worldgym serve policy "
                "--policy FOLDER"
            )
        unused = [n for n in ("keys", "image_size", "actions") if getattr(config, n) != _DEFAULTS[n]]
        if self.ours and unused:
            logger.warning(
                "%s is a server of worldgym, which names its inputs itself; %s of the address has no effect",
                config.url, " and ".join(unused),
            )  # fmt: skip
        self.specs = Specs.from_dict(told["specs"]) if self.ours and told.get("specs") else specs
        chunk = config.chunk or told.get("chunk")
        if not isinstance(chunk, int):
            raise ConfigError(
                f"{config.url} does not say how many actions of a reply to execute; set chunk, for example "
                f"{config.url}?chunk=5"
            )
        self.chunk, self.reports_units = chunk, config.actions == "units"
        if self.ours:
            self.reports_units = told.get("actions") == "units"
        if self.reports_units and (self.specs is None or self.specs.action is None):
            raise ConfigError(
                "the server's actions are in the robot's units, and the bounds of these are not known; give "
                "specs=Specs(observation, action), or actions=normalised"
            )
        self.reset()

    @classmethod
    def connect(cls, address: str) -> Self:
        """The policy at an address, with settings in its query (`RemotePolicyConfig.parse`)."""
        return cls(RemotePolicyConfig.parse(address))

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> PolicyOutput:
        """Actions `(B,K,A)`; the log-probabilities are zeros.

        Raises:
            ConfigError: the server's actions have another shape, or are NaN or infinite.
            ServerUnavailableError: the server does not answer.
        """
        count = len(observation["instruction"])
        if self.ours:
            replies = [self._asked_at_once(observation, temperature, generator)]
        else:
            replies = [
                self.client.request(self.map.to_message(self._sized(observation), row))
                for row in range(count)
            ]
        parts = [self._actions(reply) for reply in replies]
        actions = np.concatenate(parts) if parts else np.zeros((0, self.chunk, 1), np.float32)
        if self.reports_units:
            assert self.specs is not None and self.specs.action is not None
            actions = self.specs.action.normalise(actions)
        chosen = torch.from_numpy(np.clip(actions, -1, 1).astype(np.float32))
        return PolicyOutput(chosen, {"action": torch.zeros(count)}, temperature=temperature)

    def _asked_at_once(
        self, observation: Observation, temperature: Temperature, generator: torch.Generator | None
    ) -> Any:
        device: Any = "cpu" if generator is None else generator.device
        message = {
            key: value for key, value in observation.items() if key == "image" or key.startswith("image_")
        }
        heat = dict(temperature) if isinstance(temperature, Mapping) else float(temperature)
        seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        return self.client.request({
            **{key: host_array(value) for key, value in message.items()},
            "state": host_array(observation["state"]),
            "instruction": [str(text) for text in observation["instruction"]],
            "temperature": heat,
            "seed": seed,
            "names": "worldgym",
        })  # fmt: skip

    def _sized(self, observation: Observation) -> Mapping[str, Any]:
        side = self.config.image_size
        if side is None:
            return observation
        shown = {
            key: resize_with_pad(host_array(value), side, side)
            for key, value in observation.items()
            if key == "image" or key.startswith("image_")
        }
        return {**observation, **shown}

    def _actions(self, reply: Any) -> np.ndarray:
        """`(B, K, A)` of one reply."""
        actions = reply.get("actions") if isinstance(reply, Mapping) else None
        given = np.asarray(actions, np.float32) if isinstance(actions, (np.ndarray, list)) else np.zeros(0)
        given = given[None] if given.ndim == 2 else given
        if given.ndim != 3 or given.shape[1] < self.chunk:
            told = "no actions" if actions is None else f"actions of shape {np.shape(actions)}"
            raise ConfigError(
                f"{self.config.url} answered with {told}"
                f"; expected (K, A) with K >= {self.chunk}. Set chunk to at most the length of its replies"
            )
        given = given[:, : self.chunk]
        if not np.isfinite(given).all():
            raise ConfigError(f"{self.config.url} answered with actions that are NaN or infinite")
        return given

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that names the server; the token and its variable are not stored."""
        specs = None if self.specs is None else self.specs.to_dict()
        with save_folder(folder) as stage:
            told = {TYPE: "remote", **dataclasses.asdict(self.config), "specs": specs}
            (stage / "config.json").write_text(json.dumps(told, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Connect to the server that a folder names.

        Raises:
            CheckpointError: the folder is damaged.
            ServerUnavailableError: the server does not answer.
        """
        path = verify_folder(folder, ("config.json",), REMEDY)
        told = read_json(path / "config.json", REMEDY)
        names = {field.name for field in dataclasses.fields(RemotePolicyConfig)}
        if not isinstance(told, dict) or "url" not in told or set(told) - {TYPE, "specs", *names}:
            raise CheckpointError(
                f"{path / 'config.json'} does not hold the settings of a remote policy; {REMEDY}"
            )
        specs = told.get("specs")
        config = RemotePolicyConfig(**{name: told[name] for name in names & set(told)})
        return cls(config, specs=None if specs is None else Specs.from_dict(specs))

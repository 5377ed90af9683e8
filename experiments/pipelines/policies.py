"""Policies as named on a command line: a folder, an address, `sft` for the bundled one, `@T` for a temperature.

Example::

    choice = PolicyChoice.parse("runs/demo/policy@1.0", bundle)
    choice.temperature      # 1.0
    choice.ref.load()       # the policy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bundle import Bundle
from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation import PolicyRef
from worldgym.registry import POLICIES
from worldgym.serving.address import is_address

ELSEWHERE = {
    "ws://": "agents.policies.remote.policy:RemotePolicy.connect",
    "wss://": "agents.policies.remote.policy:RemotePolicy.connect",
    "lerobot:": "agents.policies.lerobot_adapter:load_lerobot",
}
"""Policies that are no folder of worldgym: the beginning of their name, and what loads them."""


@dataclass(frozen=True)
class PolicyChoice:
    """A policy and its sampling temperature.

    Args:
        name: as typed.
        ref: reference to the policy's folder.
        temperature: 0 is greedy.
    """

    name: str
    ref: PolicyRef
    temperature: float

    @classmethod
    def parse(cls, text: str, bundle: str, temperature: float = 0.0, device: str = "cpu") -> PolicyChoice:
        """Parse `FOLDER`, `sft`, `ws://HOST:PORT` or `lerobot:FOLDER`, each also with `@T`.

        Args:
            text: the text typed by the user.
            bundle: name or folder of the bundle that provides `sft`.
            temperature: used if the text has none.
            device: device on which the policy is loaded.

        Raises:
            ConfigError: the temperature is not a number >= 0.
            CheckpointError: the folder holds no policy.
        """
        place, at, number = text.rpartition("@")
        if not at:
            place = text
        else:
            try:
                temperature = float(number)
            except ValueError:
                temperature = -1.0
            if not 0 <= temperature < float("inf"):
                raise ConfigError(f"in {text!r}, {number!r} is not a temperature; type for example {place}@1.0")
        for begin, loader in ELSEWHERE.items():
            if place.startswith(begin):
                return cls(text, PolicyRef(place, loader, device), temperature)
        return cls(text, PolicyRef(str(policy_folder(place, bundle)), device=device), temperature)


def policy_folder(place: str | Path, bundle: str) -> Path:
    """Folder of a policy named on the command line: a folder, or `sft` for that of the bundle.

    Raises:
        CheckpointError: no such folder, or it has no policy. Model hubs are not searched.
        ConfigError: no installed package registers the policy's type.
    """
    if is_address(place):
        raise ConfigError(f"{place} is no address of a policy server; one begins with ws:// or wss://")
    folder = Path(place).expanduser()
    if str(place) == "sft" and not folder.exists():
        return Bundle.find(bundle).policy_folder
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {place}; give a folder written by save_pretrained, sft for the policy of bundle "
            f"{bundle}, or the address of a server such as ws://127.0.0.1:8000"
        )
    POLICIES.get(POLICIES.type_of(folder))
    return folder


@dataclass(frozen=True)
class DecodedRef(PolicyRef):
    """A policy that sees frames as imagination would show them: encoded and decoded by a world model's tokenizer.

    A policy that was practised on imagined frames may act otherwise on real ones; its success on both tells how much.

    Args:
        world_model: folder of the world model.
    """

    world_model: str = ""

    def load(self) -> Any:
        """Load policy and tokenizer.

        Raises:
            ConfigError: the world model has no tokenizer of frames.
        """
        from worldgym.models import load_world_model

        tokenizer = getattr(load_world_model(Path(self.world_model)), "tokenizer", None)
        if tokenizer is None:
            raise ConfigError(f"--decoded-by {self.world_model}: this world model has no tokenizer of frames")
        return DecodedPolicy(super().load(), tokenizer)

    def stamp(self) -> tuple[str, str, str, int]:
        """Cache key, other than that of the policy alone."""
        loader, path, device, time = super().stamp()
        return f"{loader}|{self.world_model}", path, device, time


class DecodedPolicy:
    """See `DecodedRef`.

    Args:
        policy: the policy.
        tokenizer: with `encode` and `decode` of frames `(B,H,W,3)` uint8.
    """

    def __init__(self, policy: Any, tokenizer: Any) -> None:
        self.policy, self.tokenizer, self.chunk = policy, tokenizer, policy.chunk

    def act(self, observation: Any, **options: Any) -> Any:
        """`Policy.act` on the decoded frames of the main camera."""
        import torch

        with torch.no_grad():
            shown = self.tokenizer.decode(self.tokenizer.encode(torch.as_tensor(observation["image"])))
        return self.policy.act({**observation, "image": shown.to(torch.uint8)}, **options)

"""Policies as they are named on a command line: a folder, `sft` for the bundled one, `@T` for a temperature.

Example::

    choice = PolicyChoice.parse("runs/demo/policy@1.0", bundle)
    choice.temperature      # 1.0
    choice.ref.load()       # the policy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.bundle import Bundle
from worldgym.errors import CheckpointError, ConfigError
from worldgym.evaluation import PolicyRef
from worldgym.registry import POLICIES


@dataclass(frozen=True)
class PolicyChoice:
    """A policy and how it is sampled.

    Args:
        name: as it was typed.
        ref: where it is.
        temperature: 0 is greedy.
    """

    name: str
    ref: PolicyRef
    temperature: float

    @classmethod
    def parse(cls, text: str, bundle: str, temperature: float = 0.0, device: str = "cpu") -> PolicyChoice:
        """Read `FOLDER`, `FOLDER@T`, `sft` or `sft@T`.

        Args:
            text: what was typed.
            bundle: name or folder that `sft` refers to.
            temperature: when none is given in the text.
            device: where the policy is loaded.

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
                raise ConfigError(f"in {text!r}, {number!r} is no temperature; type for example {place}@1.0")
        return cls(text, PolicyRef(str(policy_folder(place, bundle)), device=device), temperature)


def policy_folder(place: str | Path, bundle: str) -> Path:
    """The folder of a policy that a command line names: a folder, or `sft` for the one of a bundle.

    Raises:
        CheckpointError: no such folder, or one without a policy. No hub is asked.
        ConfigError: a policy of a type that no installed package registers.
    """
    folder = Path(place).expanduser()
    if str(place) == "sft" and not folder.exists():
        return Bundle.find(bundle).policy_folder
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {place}; give a folder written by save_pretrained, or sft for the policy of "
            f"bundle {bundle}"
        )
    POLICIES.get(POLICIES.type_of(folder))
    return folder

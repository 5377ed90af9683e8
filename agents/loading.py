"""A saved policy of any registered type, and one on its way to another process.

Example::

    policy = load_policy("runs/policy")     # its config.json says which type it is
    sent = pack_policy(policy)              # files, to be sent to a worker
    same = sent.load()
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldgym.registry import POLICIES
from worldgym.utils.devices import choose_device, place


def load_policy(folder: str | Path, *, device: str | None = None) -> Any:
    """The policy in `folder`, in evaluation mode.

    Args:
        folder: written by the `save_pretrained` of a policy whose type `worldgym list` shows.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: given to a `from_pretrained` that takes it, and the policy is moved
            there where it has `to`. None leaves it where its `from_pretrained` put it.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        ConfigError: its type is unknown here; lists what is known.
    """
    policy = POLICIES.load(folder, offered={} if device is None else {"device": device})
    if device is not None:
        policy = place(policy, choose_device(device))
    if hasattr(policy, "eval"):
        policy.eval()
    return policy


@dataclass(frozen=True)
class PackedPolicy:
    """The folder of a policy, in memory: what a worker on another machine needs, and no pickled weights.

    Args:
        files: contents by path.
        key: hash of them.
        training: whether it was in training mode.
    """

    files: dict[str, bytes]
    key: str
    training: bool = False

    def load(self) -> Any:
        """The policy, in the mode in which it was packed.

        Raises:
            ConfigError: its type is unknown here; install the package that registers it.
        """
        with tempfile.TemporaryDirectory(prefix="worldgym-policy-") as folder:
            for name, content in self.files.items():
                file = Path(folder) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            policy = load_policy(folder)
        if self.training:
            policy.train()
        return policy


def pack_policy(policy: Any) -> PackedPolicy:
    """The files that `policy.save_pretrained` writes.

    Raises:
        ConfigError: it cannot be saved, or does not write its type.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="worldgym-policy-") as folder:
        POLICIES.save(policy, folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    for name, content in files.items():
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return PackedPolicy(files, digest.hexdigest(), bool(getattr(policy, "training", False)))

"""Load a saved policy of any registered type, or pack a policy for another process.

Example::

    policy = load_policy("runs/policy")     # config.json names the policy type
    packed = pack_policy(policy)            # the policy's files, in memory
    same = packed.load()                    # in a worker
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
    """Load the policy in `folder` and set it to evaluation mode.

    Args:
        folder: written by `save_pretrained` of a registered policy type (`worldgym list` shows the types).
        device: `auto`, `cpu`, `cuda` or `cuda:N`. It is passed to `from_pretrained` if that method accepts it, and the
            policy is moved there if it has a `to` method. None keeps the device chosen by `from_pretrained`.

    Raises:
        CheckpointError: the folder has no policy, or a damaged one.
        ConfigError: the policy type is not registered; the message lists the registered types.
    """
    policy = POLICIES.load(folder, offered={} if device is None else {"device": device})
    if device is not None:
        policy = place(policy, choose_device(device))
    if hasattr(policy, "eval"):
        policy.eval()
    return policy


@dataclass(frozen=True)
class PackedPolicy:
    """The files of a saved policy, in memory, to be sent to a worker on another machine. Contains no pickled weights.

    Args:
        files: file contents by relative path.
        key: hash of the files.
        training: whether the policy was in training mode.
    """

    files: dict[str, bytes]
    key: str
    training: bool = False

    def load(self) -> Any:
        """Load the policy in the mode (training or evaluation) in which it was packed.

        Raises:
            ConfigError: the policy type is not registered here; install the package that registers it.
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
    """Pack the files that `policy.save_pretrained` writes.

    Raises:
        ConfigError: the policy cannot be saved, or does not write its type.
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

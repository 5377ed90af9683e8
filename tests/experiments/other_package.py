"""A package of somebody else, with real entry points: judge, policy, world model, dataset format."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldgym.data import Episode
from worldgym.protocols import Evaluation, Imagined, Judgement, PolicyOutput
from worldgym.specs import ActionSpec, Camera, ObservationSpec, Specs, state_fields
from worldgym.utils.tensors import load_tensors, save_tensors


class Saved:
    """Settings and weights in one folder; no base class of worldgym."""

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {"type": self.TYPE, **self.settings()}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        save_tensors(Path(folder) / "w.safetensors", self.state_dict())

    @classmethod
    def from_pretrained(cls, folder):
        config = json.loads((Path(folder) / "config.json").read_text())
        config.pop("type")
        part = cls(**config)
        part.load_state_dict(load_tensors(Path(folder) / "w.safetensors"))
        return part


class Judge(Saved, nn.Module):
    TYPE, name = "their_judge", "theirs"

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def settings(self):
        return {}

    @classmethod
    def for_data(cls, specs, preset, arrays):
        assert specs.action is not None and specs.observation.main.size == tuple(arrays.frames.shape[1:3])
        return cls()

    def fit(self, arrays, settings, folder):
        self.level.data.fill_(float(arrays.success.mean()))
        return {"level": float(arrays.success.mean())}

    def score(self, frames, instructions):
        p = torch.full((len(frames),), float(self.level.detach()))
        return Judgement(p, None, torch.ones(len(p), dtype=torch.bool))


class Policy(Saved, nn.Module):
    TYPE = "their_policy"

    def __init__(self, chunk=5, dims=4):
        super().__init__()
        self.chunk, self.dims = chunk, dims
        self.mean = nn.Parameter(torch.zeros(chunk, dims))

    def settings(self):
        return {"chunk": self.chunk, "dims": self.dims}

    @classmethod
    def for_data(cls, specs, preset, arrays):
        return cls(dims=specs.action.dim)

    def _log_prob(self, actions):
        return -(((actions - self.mean) / 0.3) ** 2 / 2).sum((1, 2))

    def act(self, observation, *, temperature=1.0, generator=None):
        count = len(observation["instruction"])
        noise = torch.randn(count, self.chunk, self.dims, generator=generator)
        raw = self.mean + 0.3 * noise * float(temperature > 0 if isinstance(temperature, (int, float)) else 1)
        return PolicyOutput(raw.clamp(-1, 1), {"action": self._log_prob(raw)}, {"raw": raw}, temperature)

    def evaluate(self, observation, trace, components=None):
        log_prob = self._log_prob(trace["raw"])
        return Evaluation({"action": log_prob}, {"action": torch.zeros_like(log_prob) + self.mean.sum() * 0})

    def loss(self, batch, components=None):
        wanted = torch.as_tensor(batch["actions"])
        error = (self.mean - wanted.nan_to_num()).square()
        return {"action": error[~wanted.isnan()].mean()}

    def features(self, observation, layer=-1):
        return self.mean[None].expand(len(observation["instruction"]), -1, -1)


class WorldModel(Saved, nn.Module):
    """Frames stay as they are; proprioception follows the actions."""

    TYPE = "their_world_model"

    def __init__(self, size=64, action_dim=4, state_dim=4):
        super().__init__()
        self.image_size, self.action_dim, self.state_dim = size, action_dim, state_dim
        self.gain = nn.Linear(action_dim, state_dim)

    def settings(self):
        return {"size": self.image_size, "action_dim": self.action_dim, "state_dim": self.state_dim}

    @classmethod
    def for_data(cls, specs, preset, arrays):
        return cls(specs.observation.main.height, specs.action.dim, specs.observation.state_dim)

    def loss(self, batch, generator):
        moved = batch["state"][:, 1:] - batch["state"][:, :-1]
        error = (self.gain(batch["action"]) - moved).square().mean(-1)
        return {"states": error[batch["frame_mask"][:, 1:]].mean(), "small": 1e-3 * self.gain.weight.square().sum()}

    def begin(self, frames, actions, generator=None, *, states=None):
        return {"frame": frames[:, -1], "state": states[:, -1].float()}

    @torch.no_grad()
    def step(self, state, actions, *, decode="all"):
        path = state["state"][:, None] + 0.01 * torch.cumsum(self.gain(actions.float()), 1)
        count = {"all": actions.shape[1], "last": 1, "none": 0}[decode]
        frames = state["frame"][:, None].expand(-1, count, -1, -1, -1)
        imagined = Imagined(frames, None, path, torch.zeros(len(path)))
        return {"frame": state["frame"], "state": path[:, -1]}, imagined

    def fork(self, state, index, generator=None):
        return {name: value[index].clone() for name, value in state.items()}

    def merge(self, state, rows, other):
        return {name: value.index_copy(0, rows, other[name]) for name, value in state.items()}

    def observe(self, state, frames, states=None):
        return {**state, "frame": frames}


class Format:
    """`NAME.traj`: JSON with actions and states; frames are black."""

    @staticmethod
    def detects(source):
        return any(source.glob("*.traj"))

    @staticmethod
    def specs(source):
        first = json.loads(sorted(source.glob("*.traj"))[0].read_text())
        names = tuple(first["names"])
        action = ActionSpec(names, ("rad",) * len(names), 10.0, (-1.0,) * len(names), (1.0,) * len(names))
        state = state_fields([f"s{i}" for i in range(len(first["states"][0]))])
        return Specs(ObservationSpec((Camera("front", 16, 16),), state), action)

    @staticmethod
    def episodes(source):
        for file in sorted(source.glob("*.traj")):
            data = json.loads(file.read_text())
            states = np.array(data["states"], np.float32)
            count = len(states)
            yield Episode(
                np.zeros((count, 16, 16, 3), np.uint8), np.array(data["actions"], np.float32), states, "move",
                np.zeros(count, bool), np.zeros(count, np.float32), "real", "seen", "move",
                {"behaviour": "teleoperation"},
            )
'''
POINTS = """[worldgym.judges]
their_judge = other_parts:Judge
[worldgym.policies]
their_policy = other_parts:Policy
[worldgym.world_models]
their_world_model = other_parts:WorldModel
[worldgym.dataset_formats]
traj = other_parts:Format
"""


def install(site: Path) -> Path:
    """Write the package into `site`, as an installer would."""
    facts = site / "other_parts-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: other-parts\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(POINTS)
    (site / "other_parts.py").write_text(SOURCE)
    return site

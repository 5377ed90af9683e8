"""`worldgym picture`: an image of true frames (top) and imagined frames (bottom) for the same starts and actions.

The starts are held out. The actions are those of the noisy scripted expert for the whole horizon; after success it
continues with other motions.

Example::

    worldgym picture --out docs/imagined.png --episodes 3 --horizon 40
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.compute import DType, placing
from experiments.suites import BundleName
from worldgym.pretrained import DEFAULT
from worldgym.utils.files import atomic_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureConfig:
    """Draw true and imagined frames of the same episodes.

    Args:
        out: PNG file to write.
        bundle: name or folder of a checkpoint.
        episodes: number of episodes; tasks alternate.
        horizon: steps predicted from the first frame.
        every: steps between the frames shown.
        suite: suite of the true frames; that of the bundle if None.
        seed: first start seed; seeds of at least 10,000,000 are held out.
        scale: magnification of the frames.
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        dtype: precision of world-model inference; `auto` uses the saved precision.
    """

    out: Path = Path("runs/imagined.png")
    bundle: BundleName = DEFAULT
    suite: str | None = None
    episodes: int = 3
    horizon: int = 40
    every: int = 4
    seed: int = 10_900_000
    scale: int = 2
    device: str = "auto"
    dtype: DType = "auto"


def run(config: PictureConfig) -> int:
    """Record the episodes, imagine them, and write the image."""
    import torch
    from PIL import Image

    from experiments.bundle import Bundle
    from experiments.suites import chosen_suite, real_env

    bundle, suite = Bundle.find(config.bundle, placing(config)), chosen_suite(config.suite, config.bundle)
    model = bundle.world_model()
    tasks = bundle.card.get("tasks") or list(suite.default_tasks)
    env = real_env(suite, terminate_on_success=False, horizon=config.horizon)
    behaviour = "noisy" if "noisy" in suite.behaviours else suite.behaviours[0]
    rows = []
    for i in range(config.episodes):
        seed = config.seed + i
        task = tasks[-1 - i % len(tasks)]
        episode = suite.demonstrate(env, behaviour, seed=seed, task=task, rng=np.random.default_rng(seed))
        frames, actions = torch.from_numpy(episode.frames), torch.from_numpy(episode.actions)
        state = model.begin(
            frames[None, :1],
            actions[None, :0],
            torch.Generator().manual_seed(seed),
            states=torch.from_numpy(episode.state)[None, :1],
        )
        _, imagined = model.step(state, actions[None])
        predicted = np.concatenate([episode.frames[:1], imagined.frames[0].cpu().numpy()])
        for source in (episode.frames, predicted):
            rows.append(np.concatenate(list(source[:: config.every]), 1))
        error = (imagined.frames[0].cpu().float() - frames[1:].float()).square().mean((1, 2, 3)) / 255**2
        logger.info("%s: PSNR %.1f dB at the end", episode.instruction, float(-10 * error[-1].log10()))
    picture = np.concatenate(rows)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    size = (picture.shape[1] * config.scale, picture.shape[0] * config.scale)
    with atomic_path(config.out) as temporary:
        Image.fromarray(picture).resize(size, Image.Resampling.NEAREST).save(temporary)
    return 0

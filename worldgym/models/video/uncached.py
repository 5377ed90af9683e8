"""Prediction without a cache: every pass runs the whole window again, as WorldGym does with its own network.

It is the reference for the ring buffer (one pass without guidance gives the same frames), and the baseline for speed:
the published sampler clears its keys and values at every frame, takes 10 DDIM steps and uses a guidance weight of 3, in
float32.

Example::

    frames = imagine_uncached(model, frames[:, :1], actions, states[:, :1], generator, passes=10, guidance=3.0)
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldgym.models.video.dynamics import DynamicsOutput
from worldgym.models.video.world_model import VideoWorldModel
from worldgym.nn import renoise
from worldgym.utils.devices import randn


@torch.no_grad()
def imagine_uncached(
    model: VideoWorldModel,
    frames: Tensor,
    actions: Tensor,
    states: Tensor,
    generator: torch.Generator,
    *,
    passes: int = 10,
    guidance: float = 1.0,
) -> Tensor:
    """Frames `(B,T,H,W,3)` uint8 from `frames (B,1,H,W,3)` uint8 and `states (B,1,S)` under `actions (B,T,A)`.

    Args:
        model: its float32 network is used.
        frames: the true first frame.
        actions: actions in [-1, 1].
        states: proprioception at the first frame, in data units.
        generator: draws the noise of all passes but the first, which starts from zeros.
        passes: number of denoising passes per frame.
        guidance: weight w of `idle + w (acting - idle)`, where `idle` is the prediction for zero actions; 1 means no
            guidance and costs half.
    """
    net, window = model.dynamics, model.config.dynamics.window
    frames, states, actions = (window_actions.to(model.device) for window_actions in (frames, states, actions))
    latents = [model.tokenizer.encode(model.canvas.pack(frames[:, 0]))]
    anchor = latents[0]
    proprio = [model.normalise_state(states[:, 0].float())]
    out = []
    for i in range(actions.shape[1]):
        low = max(0, i + 1 - window)
        previous = torch.stack(latents[low : i + 1], 1)
        window_actions, window_states = actions[:, low : i + 1].float(), torch.stack(proprio[low : i + 1], 1)
        displacement = None
        if net.objects is not None and net.objects.config.warp_anchor:
            displacement = net.objects.displacement(torch.stack(proprio[: low + 1], 1))[:, -1]
        # Past frames are given clean, at level 0. With one pass the ring buffer keeps the network's inputs from when it
        # predicted a frame, which are zeros at level 1.
        level = torch.full(previous.shape[:2], float(passes == 1), device=previous.device)

        def denoise(
            x: Tensor,
            t: float,
            previous: Tensor = previous,
            level: Tensor = level,
            window_actions: Tensor = window_actions,
            window_states: Tensor = window_states,
            displacement: Tensor | None = displacement,
        ) -> tuple[Tensor, DynamicsOutput]:
            level[:, -1] = t
            noisy = torch.cat([previous[:, 1:], x[:, None]], 1)
            output = net(noisy, previous, level, window_actions, window_states, anchor, displacement)
            clean = output.latents[:, -1]
            if guidance != 1.0:
                idle = net(
                    noisy, previous, level, torch.zeros_like(window_actions), window_states, anchor, displacement
                )
                clean = idle.latents[:, -1] + guidance * (clean - idle.latents[:, -1])
            return clean, output

        clean, output = renoise(
            denoise,
            lambda pair: pair[0],
            torch.zeros_like(previous[:, -1]),
            [1.0 - k / passes for k in range(passes)],
            lambda k, like=latents[0]: randn(like.shape, generator, like.device).to(like),
        )
        latents.append(model.tokenizer.project(clean))
        proprio.append(proprio[-1] + output.states[:, -1])
        out.append(latents[-1])
    return model.decode(torch.stack(out, 1))[0]

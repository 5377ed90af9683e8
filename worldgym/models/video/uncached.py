"""Imagination without a cache: every pass runs the whole window again, as WorldGym drives its own network.

Why it is here: it is what our ring buffer must agree with (one pass without guidance gives the same frames), and what
speed is compared with: the published sampler clears its keys and values at every frame, takes 10 DDIM steps and guides
with a weight of 3 in float32.

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
        actions: in [-1, 1].
        states: proprioception at it, in data units.
        generator: noise of all passes but the first, which begins from nothing.
        passes: of denoising a frame.
        guidance: weight w of `still + w (acting - still)`, where `still` has zero actions; 1 is plain and costs half.
    """
    net, window = model.dynamics, model.config.dynamics.window
    frames, states, actions = (given.to(model.device) for given in (frames, states, actions))
    latents = [model.tokenizer.encode(model.canvas.pack(frames[:, 0]))]
    anchor = latents[0]
    proprio = [model.normalise_state(states[:, 0].float())]
    out = []
    for i in range(actions.shape[1]):
        low = max(0, i + 1 - window)
        previous = torch.stack(latents[low : i + 1], 1)
        given, given_states = actions[:, low : i + 1].float(), torch.stack(proprio[low : i + 1], 1)
        displacement = None
        if net.objects is not None and net.objects.config.warp_anchor:
            displacement = net.objects.displacement(torch.stack(proprio[: low + 1], 1))[:, -1]
        # The past is shown clean, at level 0. With one pass the ring buffer keeps what the network saw of a frame when
        # it drew it, which is nothing, at level 1.
        level = torch.full(previous.shape[:2], float(passes == 1), device=previous.device)

        def answer(
            x: Tensor,
            t: float,
            previous: Tensor = previous,
            level: Tensor = level,
            given: Tensor = given,
            given_states: Tensor = given_states,
            displacement: Tensor | None = displacement,
        ) -> tuple[Tensor, DynamicsOutput]:
            level[:, -1] = t
            noisy = torch.cat([previous[:, 1:], x[:, None]], 1)
            said = net(noisy, previous, level, given, given_states, anchor, displacement)
            clean = said.latents[:, -1]
            if guidance != 1.0:
                still = net(
                    noisy, previous, level, torch.zeros_like(given), given_states, anchor, displacement
                )
                clean = still.latents[:, -1] + guidance * (clean - still.latents[:, -1])
            return clean, said

        clean, said = renoise(
            answer,
            lambda both: both[0],
            torch.zeros_like(previous[:, -1]),
            [1.0 - k / passes for k in range(passes)],
            lambda k, like=latents[0]: randn(like.shape, generator, like.device).to(like),
        )
        latents.append(model.tokenizer.project(clean))
        proprio.append(proprio[-1] + said.states[:, -1])
        out.append(latents[-1])
    return model.decode(torch.stack(out, 1))[0]

"""`StateEnsemble`: recurrent world models of low-dimensional states, whose disagreement estimates their error.

RWM-U (arXiv 2504.16680): a GRU reads a history of states and actions, and E heads predict the next state as a Gaussian
each, with the reward, the success and the end of the episode. A forecast feeds a member's own samples back. The
epistemic uncertainty is the standard deviation of the members' means, summed over the state's dimensions; the aleatoric
one is the mean of their standard deviations. Two things differ from the release. The members have separate GRUs by
default, because a shared one underestimates the uncertainty (`shared_trunk`). The loss is the Gaussian likelihood,
because a squared error of samples is smallest at a standard deviation of zero.

All members are computed at once, as products of stacked matrices. A dimension that never changes within an episode is
copied and has no uncertainty.

Example::

    model = StateEnsemble(StateEnsembleConfig.preset("small").for_data(episodes))
    memory = model.begin(states[:, :8], actions[:, :7])             # (B, 8, S), (B, 7, A)
    memory, predicted = model.step(memory, actions[:, 7])           # means; give a generator to sample
    predicted.states, predicted.epistemic                           # (B, S), (B,)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.hub import HubModel
from worldgym.models.states.config import StateEnsembleConfig

LARGEST_INPUT = 8.0
"""States and actions enter the network in standard deviations, clipped to this, so that a forecast stays finite."""


@dataclass(frozen=True)
class StateMemory:
    """What a forecast of B episodes remembers.

    Args:
        hidden: `(L,G,B,W)` GRU states; G is E, or 1 with a shared trunk.
        states: `(B,S)` current states, data units.
    """

    hidden: Tensor
    states: Tensor

    def merge(self, rows: Tensor, other: StateMemory) -> StateMemory:
        """This memory with the `rows (N,)` (int64) replaced by the N episodes of `other`."""
        hidden, states = self.hidden.clone(), self.states.clone()
        hidden[:, :, rows], states[rows] = other.hidden, other.states
        return StateMemory(hidden, states)


class PredictedStates(NamedTuple):
    """Prediction of one step of B episodes.

    Args:
        states: `(B,S)` next states of the chosen members, data units.
        reward: `(B,)` of the chosen members, data units.
        success: `(B,)` probability of success after the step, in [0, 1].
        terminated: `(B,)` probability that the episode ends with the step, in [0, 1].
        epistemic: `(B,)` standard deviation of the members' means, summed over dimensions, in units of the data's
            standard deviation (`state_std`), >= 0; 0 for one member.
        aleatoric: `(B,)` mean over the members of their standard deviations, summed over dimensions, same units.
        means: `(E,B,S)` mean next state of every member, data units.
    """

    states: Tensor
    reward: Tensor
    success: Tensor
    terminated: Tensor
    epistemic: Tensor
    aleatoric: Tensor
    means: Tensor


class Forecast(NamedTuple):
    """Gaussian predictions of K steps by E members, with gradients.

    Args:
        mean: `(K,E,B,S)` change of the state from the state fed back, in units of `step_std`.
        log_std: `(K,E,B,S)` same units.
        before: `(K,E,B,S)` states from which the changes are predicted, data units.
        reward: `(K,E,B)` in units of `reward_std` around `reward_mean`.
        success: `(K,E,B)` logits.
        terminated: `(K,E,B)` logits.
    """

    mean: Tensor
    log_std: Tensor
    before: Tensor
    reward: Tensor
    success: Tensor
    terminated: Tensor


def gaussian_nll(mean: Tensor, log_std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian, elementwise, nats: `z^2 / 2 + log std + log(2 pi) / 2` of the score z."""
    return 0.5 * ((target - mean) * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi)


class _Grouped(nn.Module):
    """G linear layers as one batched product: `(G,N,I) -> (G,N,O)`."""

    def __init__(
        self, groups: int, inputs: int, outputs: int, generator: torch.Generator, bound: float
    ) -> None:
        super().__init__()
        draw = torch.rand(groups, inputs, outputs, generator=generator)
        self.weight = nn.Parameter((2 * draw - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(groups, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        groups = len(self.weight)
        if len(x) == groups:
            return torch.baddbmm(self.bias, x, self.weight)
        if groups == 1:  # one layer for the inputs of all members
            return torch.baddbmm(self.bias, x.reshape(1, -1, x.shape[-1]), self.weight).unflatten(
                1, x.shape[:2]
            )[0]
        return torch.baddbmm(self.bias, x.expand(groups, -1, -1), self.weight)


class StateEnsemble(
    nn.Module,
    HubModel,
    library_name="worldgym",
    tags=["world-model", "ensemble", "worldgym"],
    coders={StateEnsembleConfig: (StateEnsembleConfig.to_dict, StateEnsembleConfig.from_dict)},
):
    """E recurrent Gaussian world models of states. `save_pretrained` and `from_pretrained` are those of `HubModel`.

    Args:
        config: shape and statistics, made with `StateEnsembleConfig.for_data`; also accepts a plain dict (the contents
            of `config.json`).

    Raises:
        ConfigError: the config has no dimensions.
    """

    state_mean: Tensor
    state_std: Tensor
    step_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: StateEnsembleConfig | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, StateEnsembleConfig):
            config = StateEnsembleConfig.from_dict(config)
        if not config.state_dim or not config.action_dim:
            raise ConfigError(
                f"the config has {config.state_dim} state and {config.action_dim} action dimensions, expected at least "
                "one each; make it with StateEnsembleConfig.preset('small').for_data(episodes)"
            )
        c = self.config = config
        generator = torch.Generator().manual_seed(c.seed)
        groups, inputs = 1 if c.shared_trunk else c.members, c.state_dim + c.action_dim
        sizes = [inputs] + [c.width] * c.layers
        bound = c.width**-0.5
        self.read = nn.ModuleList(_Grouped(groups, n, 3 * c.width, generator, bound) for n in sizes[:-1])
        self.keep = nn.ModuleList(
            _Grouped(groups, c.width, 3 * c.width, generator, bound) for _ in sizes[:-1]
        )
        wide = c.width + inputs
        self.head = _Grouped(c.members, wide, c.head_width, generator, wide**-0.5)
        self.write = _Grouped(c.members, c.head_width, 2 * c.state_dim + 3, generator, c.head_width**-0.5)
        for name in ("state_mean", "state_std", "step_std", "action_mean", "action_std"):
            self.register_buffer(name, torch.tensor(getattr(c, name)), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    # -- network ----------------------------------------------------------------------------------
    def _inputs(self, states: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat(
            [(states - self.state_mean) / self.state_std, (actions - self.action_mean) / self.action_std], -1
        )
        return x.clamp(-LARGEST_INPUT, LARGEST_INPUT)

    def _recur(self, x: Tensor, hidden: Tensor) -> Tensor:
        """GRU states `(L,G,B,W)` after the inputs `x (G,B,I)`, or `(1,B,I)` for inputs that all members share."""
        out = []
        for read, keep, h in zip(self.read, self.keep, hidden, strict=True):
            given, kept = read(x), keep(h)
            w = h.shape[-1]
            gates = (given[..., : 2 * w] + kept[..., : 2 * w]).sigmoid()
            reset, update = gates[..., :w], gates[..., w:]
            new = (given[..., 2 * w :] + reset * kept[..., 2 * w :]).tanh()
            x = torch.lerp(new, h, update)
            out.append(x)
        return torch.stack(out)

    def _predict(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-std `(E,B,S)` of the change in units of `step_std`, and `(E,B,3)`: reward and two logits."""
        c, e = self.config, self.config.members
        raw = self.write(F.silu(self.head(torch.cat([h.expand(e, -1, -1), x.expand(e, -1, -1)], -1))))
        mean, log_std, rest = raw.split([c.state_dim, c.state_dim, 3], -1)
        log_std = c.log_std_high - F.softplus(c.log_std_high - log_std)
        return mean, c.log_std_low + F.softplus(log_std - c.log_std_low), rest

    def _warm(self, states: Tensor, actions: Tensor, valid: Tensor | None = None) -> Tensor:
        """GRU states after the pairs `states (B,P,S)`, `actions (B,P,A)`; pairs before an episode are not `valid`."""
        c, b = self.config, len(states)
        hidden = states.new_zeros(c.layers, 1 if c.shared_trunk else c.members, b, c.width)
        if states.shape[1]:
            x = self._inputs(states, actions)
            for t in range(states.shape[1]):
                hidden = self._recur(x[None, :, t], hidden)
                if valid is not None:
                    hidden = hidden * valid[:, t, None]
        return hidden

    # -- inference --------------------------------------------------------------------------------
    def begin(self, states: Tensor, actions: Tensor, valid: Tensor | None = None) -> StateMemory:
        """Read a history.

        Args:
            states: `(B,H,S)` the last H states, H >= 1, data units.
            actions: `(B,H-1,A)` the actions between them.
            valid: `(B,H-1)` bool, the pair belongs to the episode; pairs before its start may hold any numbers. None
                for all.

        Raises:
            ConfigError: an array has another shape.
        """
        c = self.config
        if states.ndim != 3 or states.shape[1] < 1 or states.shape[2] != c.state_dim:
            raise ConfigError(
                f"states have shape {tuple(states.shape)}, expected (B, H, {c.state_dim}) with H >= 1; give a single "
                "state as states[:, None]"
            )
        expected = (len(states), states.shape[1] - 1, c.action_dim)
        if tuple(actions.shape) != expected:
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected {expected}, one action between two states; leave "
                "out the action of the first forecast step"
            )
        states, actions = states.to(self.device).float(), actions.to(self.device).float()
        valid = None if valid is None else valid.to(self.device)
        with torch.no_grad():
            return StateMemory(self._warm(states[:, :-1], actions, valid), states[:, -1])

    @torch.no_grad()
    def step(
        self,
        memory: StateMemory,
        actions: Tensor,
        *,
        member: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[StateMemory, PredictedStates]:
        """Predict the next states.

        Args:
            memory: from `begin` or `step`.
            actions: `(B,A)`, data units.
            member: `(B,)` int64 in [0, E), the member that each episode follows; None takes the mean of all members.
            generator: samples the next states from the Gaussians; None takes their means.

        Raises:
            ConfigError: an array has another shape, or there is no such member.
        """
        c, b = self.config, len(memory.states)
        if tuple(actions.shape) != (b, c.action_dim):
            raise ConfigError(
                f"actions have shape {tuple(actions.shape)}, expected {(b, c.action_dim)}; give one action per episode"
            )
        if member is not None and (
            tuple(member.shape) != (b,) or bool(((member < 0) | (member >= c.members)).any())
        ):
            raise ConfigError(
                f"member has shape {tuple(member.shape)} and values {member.unique().tolist()[:8]}, expected ({b},) "
                f"and values of 0 to {c.members - 1}; draw it with torch.randint"
            )
        x = self._inputs(memory.states, actions.to(self.device).float())[None]
        hidden = self._recur(x, memory.hidden)
        mean, log_std, rest = self._predict(x, hidden[-1])
        std = log_std.exp() * self.step_std
        means = memory.states + mean * self.step_std
        if member is None:
            chosen, rest = memory.states + mean.mean(0) * self.step_std, rest.mean(0)
            spread = (std.square().mean(0) + means.var(0, correction=0)).sqrt()  # of the mixture
        else:
            rows = torch.arange(b, device=self.device)
            chosen, spread, rest = means[member, rows], std[member, rows], rest[member, rows]
        if generator is not None:
            noise = torch.randn(chosen.shape, generator=generator, device=generator.device).to(self.device)
            chosen = chosen + spread * noise
        predicted = PredictedStates(
            states=chosen,
            reward=c.reward_mean + c.reward_std * rest[:, 0],
            success=rest[:, 1].sigmoid(),
            terminated=rest[:, 2].sigmoid(),
            epistemic=(mean.std(0, correction=0) * self.step_std / self.state_std).sum(-1),
            aleatoric=(std.mean(0) / self.state_std).sum(-1),
            means=means,
        )
        return StateMemory(hidden, chosen), predicted

    # -- training ---------------------------------------------------------------------------------
    def forecast(
        self,
        states: Tensor,
        actions: Tensor,
        past: int,
        generator: torch.Generator | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Forecast:
        """Predict K steps; every member feeds back its own samples. The members share the noise.

        Args:
            states: `(B,past+1,S)`: states of the history, then the current one, data units.
            actions: `(B,past+K,A)`: actions of the history, then those of the forecast.
            past: pairs of the history.
            generator: noise of the samples; None feeds back the means.
            valid: `(B,past)` bool, the pair belongs to the episode; None for all.
        """
        e = self.config.members
        hidden = self._warm(states[:, :past], actions[:, :past], valid)
        if hidden.shape[1] == 1:
            hidden = hidden.expand(-1, e, -1, -1)
        now = states[:, past].expand(e, -1, -1)
        steps = []
        for k in range(past, actions.shape[1]):
            x = self._inputs(now, actions[:, k].expand(e, -1, -1))
            hidden = self._recur(x, hidden)
            mean, log_std, rest = self._predict(x, hidden[-1])
            steps.append((mean, log_std, now, *rest.unbind(-1)))
            change = mean
            if generator is not None:
                noise = torch.randn(now.shape[1:], generator=generator, device=generator.device).to(
                    now.device
                )
                change = mean + log_std.exp() * noise
            now = now + change * self.step_std
        return Forecast(*(torch.stack(column) for column in zip(*steps, strict=True)))

    def member(self, index: int) -> StateEnsemble:
        """A copy of one member, as an ensemble of one.

        Raises:
            ConfigError: there is no such member.
        """
        if not 0 <= index < self.config.members:
            raise ConfigError(f"member is {index}, expected 0 to {self.config.members - 1}; type member(0)")
        single = StateEnsemble(replace(self.config, members=1)).to(self.device)
        single.load_state_dict(
            {
                k: v[index : index + 1] if len(v) == self.config.members else v
                for k, v in self.state_dict().items()
            }
        )
        return single.train(self.training)

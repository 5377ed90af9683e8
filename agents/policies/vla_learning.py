"""Training interface of `VLAPolicy`: its losses, and probabilities of choices made earlier.

Improvers use only these methods. The policy has one or two *components*, each with log-probabilities, an entropy and a
loss of its own: the `action`, and the `goal`, which is the position of the hand's next keyframe.

Example::

    now = policy.evaluate(observation, trace)                  # trace of an earlier `act`
    now.log_probs["action"], now.entropies["goal"]
    losses = policy.loss({"observation": observation, "actions": actions, "goals": goals, "rng": rng})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.policies.goal_head import REACH, GoalProposals, NoGoalHead, distinct
from agents.policies.heads import Bins
from worldgym.errors import ConfigError
from worldgym.protocols import ChunkBatch, Evaluation, Observation, PolicyOutput, Temperature, total_log_prob

GOAL_SHARE = 0.3  # weight of the position's log-density in the goal loss, relative to the height of the keyframe

SAME_PLACE = 1.5  # goals closer than this many `REACH` are one place


class LearningMixin:
    """The methods of `worldgym.protocols.TrainablePolicy` that improvers use, including some optional ones."""

    if TYPE_CHECKING:
        config: Any
        head: Any
        pointer: Any
        device: Any
        state_mean: Tensor
        state_std: Tensor
        parameters: Any

        def run(self, observation: Observation, *, aim: Tensor | None = None) -> Any: ...
        def point(self, observation: Observation) -> GoalProposals: ...
        def _inputs(self, observation: Observation) -> Any: ...
        def _pointing(self, inputs: Any) -> GoalProposals: ...
        def _act_towards(self, aim: Tensor, inputs: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]: ...
        def normalise_state(self, state: Tensor) -> Tensor: ...
        def position_of(self, state: Tensor) -> Tensor: ...

    @property
    def future_tokens(self) -> int:
        """Number of learned tokens for auxiliary losses, the last ones of `features`."""
        return int(self.config.future_tokens)

    @property
    def token_width(self) -> int:
        """Width of the tokens of `features`."""
        return int(self.config.width)

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return int(self.config.layers)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that the policy samples."""
        return ("action", "goal") if self.config.goal_dims else ("action",)

    def parameters_of(self, component: str) -> Iterator[nn.Parameter]:
        """Weights of one component, to be trained alone.

        Args:
            component: `goal`, `action`, `action_head` (the output layer of the actions alone), or `all`.

        Raises:
            ConfigError: no such component, or it has no weights of its own.
        """
        if component == "all":
            yield from self.parameters()
            return
        if component == "action_head":
            yield from self.head.parameters()
            return
        if component not in ("goal", "action") or isinstance(self.pointer, NoGoalHead):
            raise ConfigError(
                f"this policy has no {component!r} that can be trained alone; set learn='all', or type --learn all"
            )
        pointer = list(self.pointer.parameters())
        if component == "goal":
            yield from pointer
            return
        others = {id(weight) for weight in pointer}
        yield from (weight for weight in self.parameters() if id(weight) not in others)

    def temperatures(self, temperature: Temperature) -> tuple[float, float]:
        """Return (goal temperature, action temperature).

        Raises:
            ConfigError: a negative value, or an unknown component.
        """
        if isinstance(temperature, Mapping):
            if unknown := set(temperature) - {"goal", "action"}:
                raise ConfigError(
                    f"unknown components {sorted(unknown)} of temperature; this policy has {', '.join(self.components)}"
                )
            both = float(temperature.get("goal", 1.0)), float(temperature.get("action", 1.0))
        else:
            both = float(temperature), float(temperature)
        if min(both) < 0:
            raise ConfigError(
                f"temperature must be >= 0; got {min(both)}. 0 is greedy, 1 samples from the policy's distribution"
            )
        return both

    # -- policy gradients ---------------------------------------------------------------------------------------

    def evaluate(
        self, observation: Observation, trace: Mapping[str, Tensor], components: Sequence[str] | None = None
    ) -> Evaluation:
        """Log-probabilities and entropies of a trace of `act` under the current weights, at its temperatures.

        With the goal alone, the action network is not run, and the goal is evaluated as a choice between the proposed
        positions; no gradient flows into the positions.

        Args:
            observation: input of `act`.
            trace: from the output of `act`.
            components: `action`, `goal`; None means all components of the policy.
        """
        wanted = self.components if components is None else tuple(components)
        aim, log_probs, entropies = trace.get("aim"), {}, {}
        if wanted == ("goal",):
            pointing = self.point(observation)
            pointing = pointing._replace(places=pointing.places.detach())
        else:
            out = self.run(observation, aim=None if aim is None else aim.to(self.device))
            pointing, action_temp = out.pointing, trace["action_temperature"].to(self.device)
            log_probs["action"], entropies["action"] = self.head.evaluate(
                out.features, {name: value.to(self.device) for name, value in trace.items()}, action_temp
            )
        if "goal" in wanted and aim is not None:
            temp = trace["goal_temperature"].to(self.device)
            temp = torch.where(temp == 0, 1.0, temp)[:, None]
            log_probs["goal"] = self.pointer.log_prob(pointing, aim.to(self.device), temp)
            place = (pointing.scores / temp).log_softmax(-1)
            entropies["goal"] = -(place.exp() * place).sum(-1)
        return Evaluation(log_probs, entropies)

    def log_prob_of(self, observation: Observation, output: PolicyOutput) -> Tensor:
        """Differentiable `(B,)` log-probability of `output` under the current weights, at its temperature."""
        return total_log_prob(self.evaluate(observation, output.trace).log_probs)

    @torch.no_grad()
    def confidence(self, observation: Observation) -> Tensor:
        """`(B,)` log-probability of the most likely goal; low if the policy is undecided between positions."""
        pointing = self.point(observation)
        confidence: Tensor = self.pointer.log_prob(pointing, self.pointer.likeliest(pointing))
        return confidence

    # -- exploration --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def distinct_goals(
        self, observation: Observation, groups: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Goals of attempts that start from the same observation, drawn without replacement among distinct places.

        Args:
            observation: input of `act`, rows of a group are equal.
            groups: `(B,)` group of each row; rows of a group follow each other.
            temperature: divides log-probabilities.
            generator: source of randomness.

        Returns:
            goals `(B,2)`, standardised, and importance weights `(B,)`; see `agents.rollouts.exploration`.
        """
        proposals = self.point(observation)
        goals, weights = torch.zeros(len(groups), 2), torch.ones(len(groups))
        for group in torch.unique_consecutive(groups):
            rows = (groups == group).nonzero().squeeze(1)
            one = GoalProposals(proposals.scores[rows[:1]], proposals.places[rows[:1]])
            cells = torch.arange(one.scores.shape[1], device=one.scores.device)
            every = GoalProposals(one.scores.expand(len(cells), -1), one.places.expand(len(cells), -1, -1))
            centres = self.pointer.around(every, cells).cpu()  # where each cell would send the hand
            same = torch.cdist(centres, centres) < 2 * REACH
            chosen, weight = distinct((one.scores[0] / max(temperature, 1e-3)).cpu(), len(rows), same, generator)
            goals[rows], weights[rows] = centres[chosen], weight
        return goals, weights

    @torch.no_grad()
    def reached(self, observation: Observation, goals: Tensor) -> Tensor:
        """`(B,)` bool: the hand is at its goal `goals (B,2)`, standardised."""
        state = self.normalise_state(torch.as_tensor(observation["state"], device=self.device).float())
        return (self.position_of(state)[:, :2] - goals.to(self.device)).norm(dim=-1) < SAME_PLACE * REACH

    # -- supervised training ------------------------------------------------------------------------------------

    def loss(self, batch: ChunkBatch, components: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Losses of demonstrated chunks; see `loss_and_hidden`."""
        return self.loss_and_hidden(batch, components)[0]

    def loss_and_hidden(
        self, batch: ChunkBatch, components: Sequence[str] | None = None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Losses of demonstrated chunks, and the tokens of the same pass, which auxiliary losses read.

        The action head is conditioned on the true goal position plus noise. If the goal is unknown, it is conditioned
        on the most likely predicted position.

        Args:
            batch: see `worldgym.protocols.ChunkBatch`.
            components: `action`, `goal`; None means all components. With `goal` alone, its loss is the negative
                log-likelihood of the position (nats), over known goals. `action_head` is `action` without gradients
                to the features.

        Returns:
            `action`: loss of the action head (nats per dimension for token heads). `goal`, if any goal is known: 0.3
            times the negative log-likelihood of the position, plus smooth L1 of the keyframe's height, times the
            fraction of known goals. Then the tokens `(B, 3 + chunk + M, width)` after each layer; none with `goal`
            alone.
        """
        wanted = self.components if components is None else tuple(components)
        observation, actions = batch["observation"], torch.as_tensor(np.asarray(batch["actions"]))
        if not self.config.goal_dims:
            with torch.set_grad_enabled(torch.is_grad_enabled() and wanted != ("action_head",)):
                out = self.run(observation)
            return {"action": self._action_loss(out, actions)}, out.hidden
        goals = np.asarray(batch["goals"])
        known = ~torch.from_numpy(np.isnan(goals).any(1))  # imitation data may lack the path
        target = self.position_of(
            self.normalise_state(torch.from_numpy(np.nan_to_num(goals)).to(self.device))
        )
        known = known.to(self.device)
        if wanted == ("goal",):
            density = self.pointer.log_density(self.point(observation), target[:, :2])
            return {"goal": -(density * known).sum() / max(1, int(known.sum()))}, ()
        aim = target[:, :2]
        if (noise := batch.get("goal_noise", 0.0)) and (rng := batch.get("rng")) is not None:
            jitter = torch.from_numpy(rng.standard_normal((len(goals), 2)).astype(np.float32))
            aim = aim + noise * jitter.to(self.device)
        if not bool(known.all()):
            own = self.pointer.likeliest(self.point(observation)).detach()
            aim = torch.where(known[:, None], aim, own)
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted != ("action_head",)):
            out = self.run(observation, aim=aim)
        losses = {"action": self._action_loss(out, actions)}
        if "goal" in wanted and bool(known.any()):
            pointing = GoalProposals(*(part[known] for part in out.pointing))
            rest = nn.functional.smooth_l1_loss(out.goal[known][:, 2:], target[known][:, 2:], beta=0.3)
            place = self.pointer.log_density(pointing, target[known][:, :2]).mean()
            losses["goal"] = float(known.float().mean()) * (-GOAL_SHARE * place + rest)
        return losses, out.hidden

    def _action_loss(self, out: Any, actions: Tensor) -> Tensor:
        loss: Tensor = self.head.loss(
            out.features, actions.to(self.device), ~torch.isnan(actions).to(self.device)
        )
        return loss

    @torch.no_grad()
    def metrics(self, batch: ChunkBatch) -> dict[str, float]:
        """Validation scores of a batch.

        Returns:
            val_loss (action loss as in `loss`; with goals, the joint negative log-likelihood of position and actions,
            nats per dimension); for token heads val_accuracy (fraction of correct bins) and val_entropy; with goals
            val_place_loss (nats) and val_goal_error (metres between true and most likely position).
        """
        observation = batch["observation"]
        actions = torch.as_tensor(np.asarray(batch["actions"])).to(self.device)
        aim, found = None, {}
        if self.config.goal_dims:
            goals = torch.as_tensor(np.asarray(batch["goals"])).to(self.device)
            wanted = self.position_of(self.normalise_state(goals))[:, :2]
            pointing, aim = self.point(observation), wanted
            off = (self.pointer.likeliest(pointing) - wanted) * self.position_of(self.state_std[None])[0, :2]
            found["val_place_loss"] = -float(self.pointer.log_density(pointing, wanted).mean())
            found["val_goal_error"] = float(off.norm(dim=-1).mean())
        out = self.run(observation, aim=aim)
        found["val_loss"] = float(self._action_loss(out, actions))
        if aim is not None:
            found["val_loss"] += found["val_place_loss"] / (self.config.chunk * self.config.action_dim)
        if isinstance(self.head, Bins):
            known, tokens = ~torch.isnan(actions), self.head.tokens_of(actions.nan_to_num())
            log_probs = torch.log_softmax(self.head.logits(out.features, tokens), dim=-1)
            found["val_accuracy"] = float((log_probs.argmax(-1) == tokens)[known].float().mean())
            found["val_entropy"] = -float((log_probs.exp() * log_probs).sum(-1)[known].mean())
        return found

    def targets_of(self, trace: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Supervised targets that reproduce a trace: `goal (B,2)`, x and y of the end effector in the units of
        proprioception.
        """
        if "aim" not in trace:
            return {}
        aim = trace["aim"].to(self.device)
        std, mean = (self.position_of(value[None])[0, :2] for value in (self.state_std, self.state_mean))
        return {"goal": (aim * std + mean).cpu().numpy()}

    def same_goal(self, goals: np.ndarray, others: np.ndarray) -> np.ndarray:
        """`(B,)` bool: whether two goals `(B,2)`, in the units of proprioception, are one place for this policy."""
        std = self.position_of(self.state_std[None])[0, :2].cpu().numpy()
        away: np.ndarray = np.linalg.norm((goals - others) / std, axis=-1)
        return away < SAME_PLACE * REACH

    def features(self, observation: Observation, layer: int = -1) -> Tensor:
        """`(B, 3 + chunk + M, width)`: position, hand, text, action-query and M future tokens after layer `layer`."""
        inputs = self._inputs(observation)
        aim = self.pointer.likeliest(self._pointing(inputs)).detach()  # no gradient to where the policy moves
        hidden: Tensor = self._act_towards(aim, inputs)[2][layer]
        return hidden.float()

    # -- tokens -------------------------------------------------------------------------------------------------

    def actions_of(self, tokens: Tensor) -> Tensor:
        """Actions in [-1,1] for `tokens (...,A)`; token heads only."""
        actions: Tensor = self.head.actions_of(tokens)
        return actions

    def tokens_of(self, actions: np.ndarray | Tensor) -> Tensor:
        """Nearest tokens of `actions (...,A)`; token heads only."""
        tokens: Tensor = self.head.tokens_of(actions)
        return tokens

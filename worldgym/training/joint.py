"""Training of joint world-action models: flow matching of frames and actions in one sequence.

Every window is n blocks: a frame, K actions, the next frame, and so on. All rows train the video; only rows of
successful episodes with actions train the actions, so that failures teach dynamics and are not imitated. Rows of
action-free video get pure noise in place of actions (UWM, arXiv 2504.02792, section III-C).

Example::

    worldgym train wam --family dreamzero --data data/real --tokenizer runs/tokenizer --out runs/wam --minutes 30
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from worldgym.errors import ConfigError
from worldgym.models.joint.config import JointConfig
from worldgym.models.joint.network import Inputs
from worldgym.models.joint.world_model import TYPE, JointModel
from worldgym.models.tokenizers.saved import read_tokenizer
from worldgym.nn import BetaTimes, residual_velocity, uniform
from worldgym.nn.noise import expand, shifted
from worldgym.specs import Specs
from worldgym.text import embed
from worldgym.training.generic import PartTraining
from worldgym.training.loop import LoopConfig, TrainingLoop
from worldgym.training.world_model import LatentEpisodes
from worldgym.utils.devices import autocast, rand, randn
from worldgym.utils.typed import from_values

logger = logging.getLogger(__name__)

UNSPOKEN = 0.5
"""Share of the windows without the instruction among those that are not imitated: a world model gets none."""
DERIVED = ("family", "tokenizer", "action_dim", "state_mean", "state_std", "specs")
"""Fields of `JointConfig` that follow from the data or have an option of their own."""


@dataclass(frozen=True)
class JointTraining:
    """Settings of the training of a joint model.

    Args:
        imitate: whose actions are imitated: successful `demonstrations` (episodes with the behaviour `expert`, or all
            if there are none), all `successful` episodes, or `all`.
        imitated_share: share of the windows that begin in imitated episodes; 0 draws all frames alike.
        video_share: share of the windows that begin in episodes without actions, if there are any; the others get what
            is left. None draws these episodes like the others.
        context_noise: largest noise on clean frames in training, against errors that grow over an episode.
        state_noise: noise on normalised proprioception, so that the model also relies on the frame.
        action_coef: weight of the action loss.
    """

    imitate: Literal["demonstrations", "successful", "all"] = "demonstrations"
    imitated_share: float = 0.5
    video_share: float | None = None
    context_noise: float = 0.1
    state_noise: float = 0.05
    action_coef: float = 1.0

    def __post_init__(self) -> None:
        if self.imitate not in ("demonstrations", "successful", "all"):
            raise ConfigError(
                f"imitate is {self.imitate!r}, expected 'demonstrations', 'successful' or 'all'"
            )
        if not 0 <= self.imitated_share <= 1:
            raise ConfigError(f"imitated_share is {self.imitated_share}, expected a share in [0, 1]; try 0.5")
        if self.video_share is not None and not 0 <= self.video_share <= 1 - self.imitated_share:
            raise ConfigError(
                f"video_share is {self.video_share} beside imitated_share={self.imitated_share}, expected a share in "
                f"[0, {1 - self.imitated_share:g}]; lower one of them"
            )
        if min(self.context_noise, self.state_noise, self.action_coef) < 0:
            raise ConfigError(
                "context_noise, state_noise and action_coef must not be negative, got "
                f"{self.context_noise}, {self.state_noise}, {self.action_coef}"
            )


@dataclass
class JointEpisodes:
    """Encoded logs.

    Args:
        episodes: latents, actions, proprioception.
        words: `(E,D)` embeddings of the episodes' instructions.
        imitated: `(E,)` bool, episodes whose actions are imitated.
        acted: `(E,)` bool, episodes with actions.
    """

    episodes: LatentEpisodes
    words: Tensor
    imitated: Tensor
    acted: Tensor

    @staticmethod
    def encode(model: JointModel, arrays: Any, settings: JointTraining) -> JointEpisodes:
        """Encode logs with the model's tokenizer.

        Raises:
            ConfigError: no episode can be imitated.
        """
        imitate = settings.imitate
        acted = np.asarray(arrays.has_action, bool)
        good = np.array([part.max() > 0.5 for part in np.split(arrays.success, arrays.offsets[1:-1])])
        expert = (np.array(arrays.behaviours) == "expert") & acted & good
        shown = {"demonstrations": good & (expert | ~expert.any()), "successful": good, "all": good | True}
        imitated = acted & shown[imitate]
        if not acted.any():
            raise ConfigError(
                f"none of the {len(acted)} episodes has actions, and a joint model learns them; add some that have"
            )
        if not imitated.any():
            raise ConfigError(
                f"none of the {int(acted.sum())} episodes with actions has a frame labelled as success, so there is "
                "nothing to imitate; import the recording with --success COLUMN (or all), or imitate every action with "
                "--settings imitate=all"
            )
        longest, k = int(np.diff(arrays.offsets).max()) - 1, model.config.chunk
        if k > longest:
            raise ConfigError(
                f"a chunk has {k} actions, and the longest episode {longest}; try --settings chunk={min(5, longest)}"
            )
        episodes = LatentEpisodes.encode(model.tokenizer, arrays, model.canvas)
        if settings.imitated_share or settings.video_share is not None:
            frames = np.diff(arrays.offsets)
            episodes.odds = np.repeat(window_odds(imitated, acted, frames, settings), frames)
        return JointEpisodes(
            episodes,
            torch.from_numpy(embed([str(text) for text in arrays.instructions])),
            torch.from_numpy(imitated), torch.from_numpy(acted),
        )  # fmt: skip


def window_odds(
    imitated: np.ndarray, acted: np.ndarray, frames: np.ndarray, settings: JointTraining
) -> np.ndarray:
    """Relative odds `(E,)` of each frame of E episodes to begin a window.

    Args:
        imitated: `(E,)` bool, imitated episodes.
        acted: `(E,)` bool, episodes with actions.
        frames: `(E,)` their numbers of frames.
        settings: shares of the windows.
    """
    video = ~acted if settings.video_share is not None else np.zeros_like(acted)
    # an episode is of one kind; the share of a kind without episodes goes to the rest
    kinds = ((imitated, settings.imitated_share or None), (video, settings.video_share))
    odds, left, rest = np.zeros(len(frames)), 1.0, np.ones(len(frames), bool)
    for kind, share in kinds:
        if share is not None and kind.any():
            odds[kind] = share / frames[kind].sum()
            left, rest = left - share, rest & ~kind
    if rest.any():
        odds[rest] = left / frames[rest].sum()
    return odds


@dataclass(frozen=True)
class JointBatch:
    """B windows of n blocks.

    Args:
        frames: `(B,n+1,C,h,w)` clean latents.
        actions: `(B,n,K,A)`.
        states: `(B,n,S)` normalised proprioception at the start of each block.
        words: `(B,E)` standardised, zeros where the instruction was dropped.
        there: `(B,n,K)` bool, actions before the frame that is predicted; noise in rows without actions.
        imitated: `(B,n,K)` bool, actions with a loss.
        seen: `(B,n)` bool, blocks with a loss of the next frame.
        acted: `(B,)` bool, rows with actions.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor
    words: Tensor
    there: Tensor
    imitated: Tensor
    seen: Tensor
    acted: Tensor


def draw_batch(
    model: JointModel, data: JointEpisodes, batch: int, generator: torch.Generator, settings: JointTraining
) -> JointBatch:
    """Draw windows; a share of their last blocks ends after 1 to K - 1 actions."""
    c, device = model.config, model.device
    k, n = c.chunk, c.block_count
    index, mask, start, _ = data.episodes.draw(batch, n * k, generator)
    episode = torch.from_numpy(np.searchsorted(data.episodes.offsets, start, side="right") - 1)
    at = index[:, ::k].clone()
    ends = torch.full((batch,), k)
    cut = torch.rand(batch, generator=generator) < c.cut
    ends[cut] = torch.randint(1, max(2, k), (batch,), generator=generator)[cut]
    at[:, -1] = index[torch.arange(batch), (n - 1) * k + ends]
    real = mask.unflatten(1, (n, k))
    there = real.clone()
    there[:, -1] &= torch.arange(k) < ends[:, None]
    seen = real[..., -1].clone()
    seen[:, -1] = mask[torch.arange(batch), (n - 1) * k + ends - 1]
    acted = data.acted[episode]
    words = model.words_of(data.words[episode].to(device))
    share = torch.where(data.imitated[episode], c.text_drop, max(c.text_drop, UNSPOKEN))
    dropped = torch.rand(batch, generator=generator) < share
    states = model.normalise_state(data.episodes.states[index[:, : n * k : k]].to(device)).clamp(-5, 5)
    states = states + settings.state_noise * randn(states.shape, generator, device)
    actions = data.episodes.actions[index[:, :-1]].unflatten(1, (n, k)).nan_to_num()
    return JointBatch(
        data.episodes.latents[at].float().to(device), actions.to(device), states,
        words.masked_fill(dropped.to(device)[:, None], 0.0), there.to(device),
        (there & data.imitated[episode][:, None, None] & ~dropped[:, None, None]).to(device), seen.to(device),
        acted.to(device),
    )  # fmt: skip


def draw_levels(config: JointConfig, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels of the frames and of the actions, each `(B,n)`, as `JointConfig.levels` says."""
    shape, how = (batch, config.block_count), config.drawn_levels
    if how == "decoupled":
        return BetaTimes(7.0)(shape, generator), uniform(shape, generator)
    if how == "high_noise":
        return BetaTimes(3.0)(shape, generator), BetaTimes(3.0)(shape, generator)
    video = shifted(uniform(shape, generator), config.kind.shift)
    if how == "coupled":
        return video, video
    return video, shifted(uniform(shape, generator), config.kind.shift)


def joint_loss(
    model: JointModel,
    network: nn.Module,
    batch: JointBatch,
    generator: torch.Generator,
    settings: JointTraining,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """Mean squared errors of the velocities of frames and of actions: scalars `video` and `action`.

    `compiled` is that of `worldgym.nn.Transformer.forward`.
    """
    c, device = model.config, batch.frames.device
    b, n = batch.seen.shape
    t_video, t_action = (x.to(device) for x in draw_levels(c, b, generator))
    t_action = torch.where(batch.acted[:, None], t_action, torch.ones_like(t_action))
    future = batch.frames[:, 1:]
    eps_video, eps_action = (randn(x.shape, generator, device) for x in (future, batch.actions))
    video = (1 - expand(t_video, future)) * future + expand(t_video, future) * eps_video
    actions = (1 - expand(t_action, batch.actions)) * batch.actions + expand(
        t_action, batch.actions
    ) * eps_action
    spread = settings.context_noise * rand((b, n + 1, 1, 1, 1), generator, device).square()
    clean = batch.frames + spread * randn(batch.frames.shape, generator, device)
    before = clean[:, :-1]  # with its noise: imagined frames are not exact either
    inputs = Inputs(batch.words, clean, batch.states, video, before, t_video, actions, batch.there, t_action)
    with autocast(device):
        out = network(c.kind.layout(c.sizes(n)), c.kind.rule(), inputs, compiled=compiled)
    velocity = residual_velocity(out.video, video, before, t_video, c.residual)
    off_video = (velocity - (eps_video - future)).square().mean((2, 3, 4))
    off_action = (out.actions - (eps_action - batch.actions)).square().mean(-1)
    return {
        "video": (off_video * batch.seen).sum() / batch.seen.sum().clamp_min(1),
        "action": (off_action * batch.imitated).sum() / batch.imitated.sum().clamp_min(1),
    }


def state_loss(model: JointModel, data: JointEpisodes, batch: int, generator: torch.Generator) -> Tensor:
    """Squared error of proprioception, rolled out over two chunks of logged actions; 0 without proprioception."""
    if not model.state_dim:
        return torch.zeros((), device=model.device)
    e, length = data.episodes, 2 * model.config.chunk
    index, mask, start, _ = e.draw(batch, length, generator)
    first = torch.from_numpy(np.asarray(e.offsets)[np.searchsorted(e.offsets, start, side="right") - 1])
    earlier = torch.maximum(index[:, 0] - 1, first)
    inside = (index[:, 0] > first)[:, None]
    acted = torch.where(inside, e.actions[earlier], torch.zeros(1)).to(model.device)
    states = model.normalise_state(e.states[index].to(model.device))
    last = states[:, 0] - model.normalise_state(e.states[earlier].to(model.device))
    path, _ = model.integrator(
        states[:, 0], last, acted, e.actions[index[:, :-1]].to(model.device).nan_to_num()
    )
    known = mask & data.acted[torch.from_numpy(np.searchsorted(e.offsets, start, side="right") - 1)][:, None]
    known = known.to(model.device)
    return ((path - states[:, 1:]).square().mean(-1) * known).sum() / known.sum().clamp_min(1)


def _initial(path: Any) -> Any:
    """A world model to start from. A joint model that can only act, such as one of FastWAM, has a tokenizer too."""
    from worldgym.models.loading import load_world_model

    folder = Path(path)
    if (folder / "config.json").is_file() and json.loads((folder / "config.json").read_text()).get("type") == TYPE:
        return JointModel.from_pretrained(folder)
    return load_world_model(path)


def continue_from(model: JointModel, source: Any) -> None:
    """Copy the weights of a joint model of the same family; weights of another shape stay new, such as of actions.

    Args:
        model: a new model; it is changed.
        source: any world model; nothing is copied from another type or family.
    """
    if not isinstance(source, JointModel):
        return
    if source.config.family != model.config.family:
        logger.warning(
            "the initial model is of the family %s, this one of %s: only its tokenizer is used",
            source.config.family, model.config.family,
        )  # fmt: skip
        return
    own, given = _Trained(model).state_dict(), _Trained(source).state_dict()
    fits = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    _Trained(model).load_state_dict({**own, **fits})
    new = sorted(set(own) - set(fits))
    logger.log(
        logging.INFO if 2 * len(fits) > len(own) else logging.WARNING,
        "%d of %d weights are those of the initial model%s", len(fits), len(own),
        f"; new: {', '.join(new)}" if new else "",
    )  # fmt: skip


class _Trained(nn.Module):
    """The parts that are trained together."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.network, self.integrator = model.network, model.integrator


class JointTrainer:
    """Trains a model of the type `joint` for `worldgym train wam` and `train world-model --type joint`."""

    compiles = optimizers = True

    @staticmethod
    def for_data(
        specs: Specs,
        preset: str,
        arrays: Any,
        *,
        tokenizer: Path | None = None,
        initial: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> JointModel:
        """A model for a dataset.

        Args:
            specs: specs of the dataset.
            preset: a named shape.
            arrays: episodes of the dataset.
            tokenizer: run folder of `worldgym train tokenizer`.
            initial: world model whose tokenizer is taken, in place of `tokenizer`; see also `continue_from`.
            settings: fields of `JointConfig` and `JointTraining`.

        Raises:
            ConfigError: neither or both of tokenizer and initial, an unknown preset or setting, or frames of another
                size than the tokenizer's.
        """
        given = dict(settings or {})
        training = {
            name: given.pop(name) for name in list(given) if name in JointTraining.__dataclass_fields__
        }
        chosen = from_values(JointTraining, training, "training of a joint model")
        family = str(given.pop("family", "uwm"))
        if fixed := sorted(set(given) & set(DERIVED)):
            raise ConfigError(f"{', '.join(fixed)} can't be set, the data decide; leave it out of --settings")
        if tokenizer is not None and initial is not None:
            raise ConfigError("got --tokenizer and --initial, and both give the tokenizer; leave one out")
        if tokenizer is None and initial is None:
            raise ConfigError(
                "a joint model needs a tokenizer: give --tokenizer RUN (from `worldgym train tokenizer`), or --initial "
                "WORLD_MODEL, whose tokenizer is used"
            )
        source: Any = None
        if tokenizer is not None:
            frames = read_tokenizer(Path(tokenizer))
        else:
            frames = (source := _initial(initial)).tokenizer
        # video without actions does not change how the robot's own proprioception is normalised
        acting = np.repeat(np.asarray(arrays.has_action, bool), np.diff(arrays.offsets))
        base = JointConfig.preset(preset, family)
        values = {**asdict(replace(base, specs=None)), **given}
        config = JointConfig.from_dict({**values, "tokenizer": asdict(frames.config)}).for_data(
            arrays.states[acting] if acting.any() else arrays.states, specs
        )
        if tuple(config.tokenizer.size) != tuple(frames.config.size):
            raise ConfigError(
                f"the dataset needs pictures of {config.tokenizer.size} pixels, the tokenizer has "
                f"{frames.config.size}; train one on this dataset with `worldgym train tokenizer`"
            )
        model = JointModel(replace(config, tokenizer=frames.config))
        model.tokenizer.load_state_dict(frames.state_dict())
        continue_from(model, source)
        model.requires_grad_(True).tokenizer.requires_grad_(False)
        model.training_settings = chosen
        return model

    @staticmethod
    def fit(model: JointModel, arrays: Any, settings: PartTraining, folder: Path) -> dict[str, float]:
        """Train frames and actions together, and proprioception beside them; resumes."""
        chosen: JointTraining = getattr(model, "training_settings", JointTraining())
        data = JointEpisodes.encode(model, arrays, chosen)
        with torch.no_grad():
            distinct = torch.from_numpy(embed(sorted({str(text) for text in arrays.instructions})))
            model.text_mean.copy_(distinct.mean(0))
            model.text_std.copy_(distinct.std(0, correction=0).clamp_min(0.01))
        c = model.config

        def loss(module: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            batch = draw_batch(model, data, settings.batch, generator, chosen)
            terms = joint_loss(model, module.network, batch, generator, chosen, settings.compile)
            state = state_loss(model, data, 2 * settings.batch, generator)
            total = c.video_coef * terms["video"] + chosen.action_coef * terms["action"] + state
            return total, {
                **{name: float(value.detach()) for name, value in terms.items()},
                "state": float(state.detach()),
            }

        loop: LoopConfig = replace(
            settings.loop, optimizer=settings.optimizer or "muon", ema=0.995, weight_decay=0.02, final_lr=0.02
        )
        shape = {name: value for name, value in c.to_dict().items() if name not in ("specs", "sampling")}
        kept = {name: value for name, value in asdict(chosen).items() if value is not None}
        identity = {**kept, "model": shape, "batch": settings.batch}
        training = TrainingLoop(
            _Trained(model), loop, folder, loss, tag="train_wam", identity=identity, compiled=settings.compile
        )
        facts = training.run()
        model.network.load_state_dict(training.ema_model.network.state_dict())
        model.integrator.load_state_dict(training.ema_model.integrator.state_dict())
        model.eval().requires_grad_(False)
        return facts

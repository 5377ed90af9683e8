"""What is computed on a device, as one list: driven on CUDA by test_cuda.py, on a pretended device by
test_pretended_device.py. Every path starts from data on the CPU, as the commands do, and returns numbers there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import (
    GRPO,
    SFT,
    GRPOConfig,
    SelfImitation,
    SelfImitationConfig,
    SFTConfig,
    VLAPolicy,
    VLAPolicyConfig,
    average_weights,
    collect,
)
from agents.data.demonstrations import ChunkDataset
from agents.rollouts.imagined import Starts
from rewards import (
    ComposedJudge,
    JudgeTrainConfig,
    LatentJudgeConfig,
    LearnedJudge,
    LearnedJudgeConfig,
    Term,
    encode_logs,
    train_judge,
    train_latent_judge,
)
from worldgym.data.reader import EpisodeArrays
from worldgym.evaluation.fidelity import imagine_logs
from worldgym.imagination import ArrayStarts, WorldModelVectorEnv
from worldgym.models import EnsembleWorldModel, VideoWorldModel, WorldModelConfig
from worldgym.models.foresight import Foresight
from worldgym.models.probe import PositionProbe, PositionProbeConfig, probe_loss
from worldgym.models.video.uncached import imagine_uncached
from worldgym.training.foresight import ForesightData, train_foresight, value_scores
from worldgym.training.loop import LoopConfig
from worldgym.training.shift import train_shift
from worldgym.training.tokenizer import train_tokenizer
from worldgym.training.world_model import LatentEpisodes, WorldModelTraining, train_world_model
from worldgym.utils.devices import place
from worldgym.utils.train_state import TrainState

WORDS = ["push the red cube to the left", "reach the blue ball", "open the drawer", "push the green cube"]
Path_ = Callable[[torch.device, Path], Any]
PATHS: dict[str, Path_] = {}


def path(function: Path_) -> Path_:
    """Add to the list."""
    PATHS[function.__name__] = function
    return function


def logs(episodes: int = 6, length: int = 8) -> EpisodeArrays:
    """Made-up logs; the second half of every other episode is solved."""
    rng, count = np.random.default_rng(0), episodes * length
    solved = (np.arange(count) % length >= length // 2) & (np.arange(count) // length % 2 == 0)
    return EpisodeArrays(
        frames=rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
        states=rng.normal(size=(count, 4)).astype(np.float32),
        actions=rng.uniform(-1, 1, (count, 4)).astype(np.float32),
        success=solved,
        progress=solved.astype(np.float32),
        is_last=np.arange(count) % length == length - 1,
        offsets=np.arange(0, count + 1, length),
        instructions=[WORDS[i % 4] for i in range(episodes)],
        tasks=[WORDS[i % 4].split()[0] for i in range(episodes)],
        behaviours=["expert"] * episodes,
        provenance=[{}] * episodes,
        indices=np.arange(episodes),
    )


def world_model(seed: int = 0) -> VideoWorldModel:
    """A tiny one, on the CPU, that computes in float32."""
    torch.manual_seed(seed)
    model = VideoWorldModel(WorldModelConfig.preset("tiny")).eval().requires_grad_(False)
    return model.with_sampler(dtype="float32", steps=2)


def policy() -> VLAPolicy:
    """A tiny one, on the CPU."""
    torch.manual_seed(0)
    return VLAPolicy(VLAPolicyConfig.preset("tiny"))


def judge() -> LearnedJudge:
    """A tiny one, on the CPU."""
    torch.manual_seed(0)
    return LearnedJudge(LearnedJudgeConfig.preset("tiny", state_dim=4)).eval()


def starts(count: int = 2) -> Starts:
    """Where imagined episodes begin."""
    arrays = logs()
    rows = torch.arange(count)
    return Starts(
        torch.from_numpy(arrays.frames)[rows], torch.from_numpy(arrays.states)[rows], WORDS[:count],
        ["push"] * count, torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    """On the CPU, as everywhere."""
    return torch.Generator().manual_seed(seed)


def weights(module: torch.nn.Module) -> torch.Tensor:
    """All weights in one row, on the CPU."""
    return torch.cat([value.detach().float().cpu().flatten() for value in module.state_dict().values()])


def at(part: Any, device: torch.device) -> Any:
    """`part` on `device`, every tensor of it."""
    part = place(part, device)
    if isinstance(part, torch.nn.Module):
        assert {p.device.type for p in part.state_dict().values()} <= {device.type}
    return part


# -- imagining ------------------------------------------------------------------------------------------------------
@path
def imagine(device: torch.device, folder: Path) -> Any:
    """Begin, step, see what was really there, fork, merge, render."""
    model, arrays = at(world_model(), device), logs()
    frames = torch.from_numpy(arrays.frames[:6]).unflatten(0, (2, 3))
    actions, states = torch.from_numpy(arrays.actions[:10]).view(2, 5, 4), torch.from_numpy(arrays.states[:2])
    state = model.begin(frames, actions[:, :2], seeded())
    state, first = model.step(state, actions[:, 2:])
    state = model.observe(state, frames[:, 0], states)
    twin = model.fork(state, torch.tensor([1, 0, 1]), seeded(1))
    twin, second = model.step(twin, actions[[1, 0, 1], :2], decode="last")
    state = model.merge(state, torch.tensor([0]), twin.index(torch.tensor([2])))
    shown = model.render(state)
    assert {x.device.type for x in (first.frames, first.states, first.latents, shown, state.keys)} == {device.type}
    return torch.cat([first.states.flatten(), second.states.flatten(), shown.float().flatten()]).cpu()


@path
def imagine_by_other_ways(device: torch.device, folder: Path) -> Any:
    """An ensemble, the model without a cache, and logs replayed."""
    both = at(EnsembleWorldModel([world_model(), _other()]), device)
    arrays = logs()
    frames, states = torch.from_numpy(arrays.frames[:2, None]), torch.from_numpy(arrays.states[:2, None])
    actions = torch.from_numpy(arrays.actions[:6]).view(2, 3, 4)
    state = both.begin(frames, actions[:, :0], seeded(), states=states)
    state, said = both.step(both.fork(state, torch.tensor([1, 0])), actions)
    plain = imagine_uncached(both.leader, frames, actions, states, seeded(), passes=2, guidance=2.0)
    replayed, doubt = imagine_logs(
        both.leader, arrays.frames[:10].reshape(2, 5, 64, 64, 3), arrays.actions[:8].reshape(2, 4, 4),
        arrays.states[:10].reshape(2, 5, 4), seeded(),
    )  # fmt: skip
    assert np.isfinite(doubt).all()
    return torch.cat([said.states.flatten().cpu(), plain.float().flatten().cpu(), torch.from_numpy(replayed).flatten()])


def _other() -> VideoWorldModel:
    other = world_model(1)
    other.tokenizer.load_state_dict(world_model().tokenizer.state_dict())
    return other


@path
def environment(device: torch.device, folder: Path) -> Any:
    """Reset, steps through the end of an episode, a fork; arrays, then tensors."""
    arrays, seen = logs(), []
    begin = ArrayStarts(arrays.frames[:4], WORDS, arrays.states[:4])
    for tensors in (False, True):
        envs = WorldModelVectorEnv(
            world_model(), judge(), begin, num_envs=3, horizon=4, chunk=2, instruction="embedding", tensors=tensors,
            device=device,
        )  # fmt: skip
        envs.reset(seed=0)
        for _ in range(3):
            observation, reward, *_ = envs.step(np.zeros((3, 2, 4), np.float32))
        twin = envs.fork([0, 2])
        observation = twin.step(np.zeros((2, 2, 4), np.float32))[0]
        if tensors:
            assert {observation[key].device.type for key in ("image", "state", "instruction")} == {device.type}
            assert reward.device.type == device.type
        seen.append(torch.as_tensor(observation["state"]).cpu())
    return torch.cat(seen)


# -- policies -------------------------------------------------------------------------------------------------------
def rollouts(device: torch.device, actor: Any, group: int = 4) -> Any:
    """Imagined and judged on `device`; kept on the CPU."""
    parts = at(world_model(), device), at(judge(), device)
    made = collect(*parts, actor, starts(), group_size=group, horizon=10, generator=seeded(), temperature=1.0)
    held = [*made.trace.values(), *made.log_probs.values(), made.images, made.states, made.actions, made.reward]
    assert {tensor.device.type for tensor in held} == {"cpu"}
    return made


@path
def practice(device: torch.device, folder: Path) -> Any:
    """Rollouts, GRPO, imitation of one's own successes, averaged weights; saved and read again."""
    actor, average = at(policy(), device), at(policy(), device)
    made = rollouts(device, actor)
    made.reward = (torch.arange(len(made)) % 2).float()  # mixed groups, whatever an untrained judge says
    grpo = GRPO(GRPOConfig(lr=1e-4, updates=2, learn="all"))
    imitation = SelfImitation(chunks(), SelfImitationConfig(steps=2, batch_size=4, learn="all", min_rate=0.0))
    first = grpo.update(actor, made) | imitation.update(actor, made)
    average_weights(average, actor, 0.5)
    grpo.save(actor, folder / "grpo")
    imitation.save(actor, folder / "imitation")
    again = at(policy(), device)
    other = GRPO(grpo.config)
    other.load(again, folder / "grpo")
    imitation.load(again, folder / "imitation")
    second = other.update(again, made)
    return torch.tensor([first["loss"], first["imitation_loss"], first["goal_entropy"], second["entropy"]])


def chunks() -> ChunkDataset:
    """Demonstrations; the goal of one is unknown."""
    arrays, rng = logs(), np.random.default_rng(1)
    goals = arrays.states[:24].copy()
    goals[3] = np.nan
    return ChunkDataset(
        images=arrays.frames[:24], states=arrays.states[:24], instructions=[WORDS[i % 4] for i in range(24)],
        actions=rng.uniform(-1, 1, (24, 5, 4)).astype(np.float32), episode=np.repeat(np.arange(6), 4), goals=goals,
    )  # fmt: skip


@path
def cloning(device: torch.device, folder: Path) -> Any:
    """SFT with a checkpoint, gone on with, and held-out scores."""
    actor = at(policy(), device)
    config = SFTConfig(epochs=1, batch_size=8, val_fraction=0.2, finish_steps=1, aim_noise=0.1)
    SFT(config).fit(actor, chunks(), checkpoint=TrainState(folder / "state"))
    actor = at(policy(), device)
    history = SFT(replace(config, epochs=2)).fit(actor, chunks(), checkpoint=TrainState(folder / "state"))
    assert {p.device.type for p in actor.parameters()} == {device.type}
    seen = {"image": chunks().images[:3], "state": chunks().states[:3], "instruction": WORDS[:3]}
    output = actor.act(seen, temperature=0.0, generator=seeded())
    actor.confidence(seen)
    actor.features(seen)
    assert np.isfinite(actor.targets_of(output.trace)["goal"]).all()
    return torch.tensor([history["best_val_loss"]])


@path
def cloning_with_auxiliary_losses(device: torch.device, folder: Path) -> Any:
    """SFT with both auxiliary losses, on demonstrations and on video without actions, gone on with."""
    from agents.auxiliary.encoder import FrozenEncoder
    from agents.auxiliary.flare import Flare, FlareSettings
    from agents.auxiliary.vla_jepa import VlaJepa, VlaJepaSettings

    demos = chunks().with_future()
    video = replace(demos, actions=np.full_like(demos.actions, np.nan), goals=np.full_like(demos.goals, np.nan))
    config = SFTConfig(epochs=1, batch_size=8, val_fraction=0.2, finish_steps=1)
    jepa = VlaJepaSettings(steps=2, stride=1, tokens_per_step=2, width=32, depth=1, heads=2, leak="policy")
    for epochs in (1, 2):
        torch.manual_seed(0)
        shape = VLAPolicyConfig.preset("tiny", future_tokens=8, future_view=True)
        actor = at(VLAPolicy(shape), device)
        encoder = FrozenEncoder(at(world_model(), device).tokenizer, "tiny")
        losses = [
            Flare(FlareSettings(tokens=2), actor), VlaJepa(jepa, actor, 2, encoder=encoder),
            Flare(FlareSettings(tokens=2, target="frozen"), actor, 6, encoder=encoder),
        ]  # fmt: skip
        losses[2].name = "flare_frozen"
        trainer = SFT(replace(config, epochs=epochs), losses, video)
        history = trainer.fit(actor, demos, checkpoint=TrainState(folder / "state"))
    assert {p.device.type for part in (actor, *losses) for p in part.parameters()} == {device.type}
    return torch.tensor([history["best_val_loss"]])


# -- training -------------------------------------------------------------------------------------------------------
@path
def train_models(device: torch.device, folder: Path) -> Any:
    """Tokenizer, moving of latents, dynamics on true and on imagined contexts; the last resumes."""
    arrays, loop = logs(), LoopConfig(steps=2, warmup=1, log_every=1)
    tokenizer = train_tokenizer(
        arrays.frames, WorldModelConfig.preset("tiny").tokenizer, loop, folder / "tokenizer", batch=4,
        held_out=arrays.frames[:4], device=device,
    )  # fmt: skip
    model = world_model().requires_grad_(True)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    model = at(model, device)
    data = LatentEpisodes.encode(model.tokenizer, arrays)
    assert data.latents.device.type == "cpu"
    train_shift(model, data, loop, folder / "shift")
    settings = WorldModelTraining(
        loop=replace(loop, optimizer="muon"), batch=3, window=4, rollout_from=0.5, rollout_share=1.0
    )
    train_world_model(model, data, settings, folder / "dynamics")
    longer = replace(settings, loop=replace(settings.loop, steps=4))
    trained = train_world_model(model, data, longer, folder / "dynamics")
    assert trained.device.type == device.type
    return weights(trained.dynamics)


@path
def train_probe_and_foresight(device: torch.device, folder: Path) -> Any:
    """The ruler of positions, and the predictor of value."""
    arrays = logs()
    probe = at(PositionProbe(PositionProbeConfig(parts=("hand", "red cube"))), device)
    where = torch.from_numpy(np.random.default_rng(0).uniform(0, 64, (4, 2, 2)).astype(np.float32))
    probe_loss(probe, torch.from_numpy(arrays.frames[:4]), where)[0].backward()
    assert np.isfinite(probe.locate(torch.from_numpy(arrays.frames[:4])).positions).all()
    model = at(world_model(), device)
    latents = model.tokenizer.encode(torch.from_numpy(arrays.frames)).cpu()
    rows = np.arange(len(latents))
    texts = torch.from_numpy(np.random.default_rng(1).normal(size=(len(rows), 384)).astype(np.float32))
    data = ForesightData(
        latents, torch.from_numpy(arrays.states), texts, torch.from_numpy(rows[:, None] // 8 * 8 + 7),
        -torch.linspace(0, 1, len(rows)), rows // 8,
    )  # fmt: skip
    torch.manual_seed(0)
    foresight = at(Foresight.of(model.tokenizer, futures=1), device)
    losses = train_foresight(foresight, data, rows, steps=2, batch_size=8)
    return torch.tensor([*losses, value_scores(foresight, data, rows)["mae"]])


@path
def judges(device: torch.device, folder: Path) -> Any:
    """Train a learned and a latent judge; score alone and composed; verdicts are on the CPU."""
    arrays, model = logs(12), at(world_model(), device)
    settings = JudgeTrainConfig(steps=2, batch_size=8, val_pairs=16, val_fraction=0.3)
    shape = replace(judge().config, dropout=0.0)
    learned, report = train_judge(arrays, model.tokenizer, settings, model=shape, device=device)
    latent, _ = train_latent_judge(
        arrays, encode_logs(model.tokenizer, arrays), model.tokenizer, settings, teacher=learned, device=device,
        model=LatentJudgeConfig(width=16, asked=4, state_dim=4),
    )  # fmt: skip
    both = at(ComposedJudge({"a": Term(learned), "b": Term(latent)}), device)
    frames, states = torch.from_numpy(arrays.frames[:3, None]), torch.from_numpy(arrays.states[:3])
    said = [part.score(frames, WORDS[:3], states=states) for part in (learned, latent, both)]
    said.append(learned.score(frames.to(device), WORDS[:3], states=states.to(device)))
    assert {verdict.p_success.device.type for verdict in said} == {"cpu"}
    return torch.cat([verdict.p_success for verdict in said])

"""SFT with auxiliary losses: unchanged without, resumable with, and a saved policy that knows nothing of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from squares import episode, policy, squares, without_actions

from agents import SFT, SFTConfig, VLAPolicy
from agents.auxiliary.base import AuxiliaryLoss
from agents.auxiliary.make import make_auxiliaries, settings_of, token_count
from agents.auxiliary.video import video_rows
from worldgym.data.arrays import EpisodeArrays
from worldgym.errors import ConfigError, DivergedError
from worldgym.utils.train_state import TrainState

SHORT = {"epochs": 3, "batch_size": 32, "val_fraction": 0.2, "finish_steps": 2}


def losses_of(own, **values):
    torch.manual_seed(3)
    return make_auxiliaries(settings_of(["flare"], values), own)


def fitted(own, *, losses=(), video=None, data=None, changes=None, **kwargs):
    config = SFTConfig(**{**SHORT, **(changes or {})})
    history = SFT(config, losses, video).fit(own, squares(6) if data is None else data, **kwargs)
    return own, history


def same(a, b) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_weight_of_zero_is_a_training_without_the_loss():
    with_none, _ = fitted(policy(dropout=0.1))
    own = policy(dropout=0.1)
    weightless, _ = fitted(own, losses=losses_of(own, weight=0.0))
    assert same(with_none, weightless)
    own = policy(dropout=0.1)
    trained, _ = fitted(own, losses=losses_of(own))
    assert not same(with_none, trained)


def test_later_frames_alone_change_nothing():
    plain, _ = fitted(policy(dropout=0.1), data=squares(6, future=False))
    more, _ = fitted(policy(dropout=0.1))
    assert same(plain, more)


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("name", ["flare", "vla_jepa"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, name, video):
    from squares import encoder

    from agents.auxiliary.flare import Flare, FlareSettings
    from agents.auxiliary.vla_jepa import VlaJepa, VlaJepaSettings

    def run(**kwargs):
        own = policy(dropout=0.1)
        torch.manual_seed(3)
        if name == "flare":
            loss: AuxiliaryLoss = Flare(FlareSettings(), own)
        else:
            loss = VlaJepa(VlaJepaSettings(steps=2, width=32, heads=2), own, encoder=encoder())
        watched = without_actions(squares(3)) if video else None
        return (*fitted(own, losses=[loss], video=watched, **kwargs), loss)

    whole, history, loss = run()

    def kill(scalars):
        if scalars["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=kill, checkpoint=TrainState(tmp_path / "c"))
    torch.manual_seed(77)
    resumed, again, resumed_loss = run(checkpoint=TrainState(tmp_path / "c"))
    assert again == history and same(whole, resumed) and same(loss, resumed_loss)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl"))


def test_the_saved_policy_holds_nothing_of_the_loss_and_loads_without_it(tmp_path):
    own = policy()
    names = set(own.state_dict())
    fitted(own, losses=losses_of(own))
    own.save_pretrained(tmp_path / "p")
    loaded = VLAPolicy.from_pretrained(tmp_path / "p")
    assert set(loaded.state_dict()) == names and same(own, loaded)
    observation, _ = squares(2).batch(np.arange(4))
    assert torch.equal(
        loaded.act(observation, temperature=0).actions, own.act(observation, temperature=0).actions
    )


def test_every_loss_is_logged_for_demonstrations_and_for_video():
    own, seen = policy(), []
    fitted(own, losses=losses_of(own), video=without_actions(squares(3)), on_epoch=seen.append)
    wanted = {"aux/flare/alignment", "aux/flare/target_action", "aux/flare/video_alignment"}
    assert wanted == {name for name in seen[0] if name.startswith("aux/")}
    assert all(np.isfinite(list(scalars.values())).all() for scalars in seen)


def test_video_changes_the_policy_though_none_of_its_actions_are_known():
    def run(video):
        own = policy()
        return fitted(own, losses=losses_of(own), video=video)[0]

    assert not same(run(None), run(without_actions(squares(3))))


def test_a_policy_that_only_has_features_is_trained_too():
    class Plain(VLAPolicy):
        loss_and_hidden = property()  # hasattr is False

        def loss(self, batch, components=None):
            return VLAPolicy.loss_and_hidden(self, batch, components)[0]

    torch.manual_seed(0)
    own = Plain(policy().config)
    before = own.future_queries.detach().clone()
    fitted(own, losses=losses_of(own))
    assert not torch.equal(own.future_queries, before)


def test_two_losses_read_tokens_of_their_own():
    settings = settings_of(["flare", "vla-jepa"], {"flare.tokens": 4, "vla_jepa.steps": 2})
    assert token_count(settings) == 4 + 8 and list(settings) == ["flare", "vla_jepa"]
    flare = make_auxiliaries({"flare": settings["flare"]}, policy(future_tokens=12))[0]
    own = policy(future_tokens=12)
    second = type(flare)(dataclasses.replace(settings["flare"], tokens=8), own, 4)
    batch = squares(2).chunk_batch(np.arange(3))
    every = own.features(batch["observation"], flare.layer)[:, -12:]
    assert torch.equal(flare.tokens(own, batch, [every] * 2), every[:, :4])
    assert torch.equal(second.tokens(own, batch, [every] * 2), every[:, 4:])


def test_a_loss_that_is_not_finite_stops_before_the_step():
    class Broken(AuxiliaryLoss):
        name = "broken"

        def losses(self, policy, batch, hidden=None):
            return {"part": self.tokens(policy, batch, hidden).sum() * float("nan")}

    own = policy()
    before = own.future_queries.detach().clone()
    with pytest.raises(DivergedError, match="auxiliary loss 'broken/part' of VLAPolicy is nan"):
        fitted(own, losses=[Broken(settings_of(["flare"])["flare"], own)])
    assert torch.equal(own.future_queries, before)


def arrays(count=2, side=16, state_dim=4, views=None) -> EpisodeArrays:
    episodes = [episode(seed) for seed in range(count)]
    frames = np.concatenate([one.frames[:, :side, :side] for one in episodes])
    total = len(frames)
    return EpisodeArrays(
        frames=frames, states=np.ones((total, state_dim), np.float32), actions=np.zeros((total, 2), np.float32),
        success=np.zeros(total, bool), progress=np.zeros(total, np.float32), is_last=np.zeros(total, bool),
        offsets=np.arange(0, total + 1, 11), instructions=[one.instruction for one in episodes],
        tasks=["move"] * count, behaviours=["human"] * count, provenance=[{}] * count, indices=np.arange(count),
        views=views or {}, has_action=np.zeros(count, bool),
    )  # fmt: skip


def test_rows_of_video_have_no_actions_and_every_one_has_a_later_frame():
    demos = squares(4)
    video = video_rows(arrays(), demos)
    assert len(video) == 20 and video.actions.shape == (20, 5, 4) and np.isnan(video.actions).all()
    assert np.isnan(video.goals).all() and video.future.at(1)[1].all()
    assert np.array_equal(video.future.at(5)[0]["image"][0].numpy(), episode(0).frames[5])
    still = video_rows(arrays(state_dim=0), demos)
    assert np.allclose(still.states, demos.states.mean(0)), (
        "no proprioception: that of the demonstrations, on average"
    )
    own = policy()
    fitted(own, losses=losses_of(own), video=still, changes={"epochs": 1, "finish_steps": 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 8}, "cameras main 8x8, and the other data have main 16x16"),
        (
            {"views": {"wrist": np.zeros((22, 8, 8, 3), np.uint8)}},
            "main 16x16, wrist 8x8, and the other data",
        ),
        ({"state_dim": 3}, "3 dimensions of proprioception, and the other data have 4"),
    ],
)
def test_video_of_another_shape_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        video_rows(arrays(**changes), squares(4))


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["flair"], {}, r"unknown auxiliary loss type 'flair' \(did you mean 'flare'\?\)"),
        (["flare", "flare"], {}, "names a loss twice"),
        (["flare"], {"wieght": 0.1}, "--aux flare: unknown setting 'wieght'; did you mean 'weight'"),
        (["flare"], {"weight": "much"}, "--aux flare: weight: .*got 'much'"),
        (["flare", "vla_jepa"], {"weight": 0.1}, "write its settings as flare.weight=0.2"),
        (["flare"], {"vla_jepa.weight": 0.1}, "the auxiliary losses are flare"),
    ],
)
def test_bad_names_and_settings_are_explained(names, values, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(names, values)


def test_a_training_that_cannot_use_the_loss_is_refused():
    own = policy()
    with pytest.raises(ConfigError, match="auxiliary losses train the whole policy, and learn is 'goal'"):
        SFT(SFTConfig(learn="goal"), losses_of(own))
    with pytest.raises(ConfigError, match="leave --aux-video out"):
        SFT(SFTConfig(), losses_of(own, weight=0.0), without_actions(squares(2)))
    with pytest.raises(ConfigError, match=r"chunk_dataset\(episodes, future=True\)"):
        fitted(own, losses=losses_of(own), data=squares(4, future=False))

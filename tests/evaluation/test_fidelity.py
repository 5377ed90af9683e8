"""Fidelity: distances, positions, doubt, baselines and the whole measurement at toy size."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldgym.evaluation import fidelity
from worldgym.models.probe import PositionProbe, PositionProbeConfig, probe_loss


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_equal_pictures_are_perfect_and_worse_ones_score_worse():
    true = _noise((3, 4, 32, 32, 3))
    near = np.clip(true.astype(int) + 8, 0, 255).astype(np.uint8)
    for measure in (fidelity.psnr, fidelity.ssim):
        assert measure(true, true).shape == (3, 4)
        assert (measure(true, near) > measure(true, 255 - true)).all()
    assert np.allclose(fidelity.ssim(true, true), 1, atol=1e-4) and np.allclose(fidelity.psnr(true, true), 60)


def test_ssim_agrees_with_its_definition_on_flat_pictures():
    # without variance only the luminance term is left
    a, b = np.full((1, 16, 16, 3), 50, np.uint8), np.full((1, 16, 16, 3), 100, np.uint8)
    x, y = 50 / 255, 100 / 255
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert np.allclose(fidelity.ssim(a, b), expected, atol=1e-4)


def test_the_feature_distance_grows_with_noise_and_is_nan_between_readings():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `bench`")
    true = np.full((1, 12, 64, 64, 3), 120, np.uint8)
    true[:, :, 20:40, 20:40] = (200, 30, 30)
    rng = np.random.default_rng(0)
    noisy = lambda s: np.clip(true + rng.normal(0, s, true.shape), 0, 255).astype(np.uint8)  # noqa: E731
    little, much = (fidelity.feature_distances(true, noisy(s)) for s in (5, 60))
    assert np.isfinite(little[:, [0, 9]]).all() and np.isnan(little[:, 1:9]).all()
    assert (little[:, 9] < much[:, 9]).all()
    assert np.allclose(fidelity.feature_distances(true, true)[:, 0], 0, atol=1e-5)


def test_overlooked_parts_are_counted_where_they_are_in_the_image():
    far = np.array([[[1.0, np.nan], [2.0, np.nan]], [[np.nan, np.nan], [3.0, np.nan]]])
    lost = np.array([[[True, False], [False, False]], [[False, False], [True, False]]])
    errors = fidelity.PositionErrors(np.zeros((2, 2)), far, np.zeros_like(lost), lost)
    assert errors.lost_by_part()[0] == pytest.approx(2 / 3) and np.isnan(errors.lost_by_part()[1])


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_auroc_is_the_share_of_rightly_ordered_pairs(event, seed):
    event = np.array(event)
    score = np.random.default_rng(seed).integers(0, 4, len(event)).astype(float)
    got = fidelity.auroc(score, event)
    if event.all() or not event.any():
        assert got is None
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in score[event] for b in score[~event]]
    assert got == pytest.approx(np.mean(pairs))


def test_drift_ends_where_the_first_frame_is_as_good():
    model, still = np.array([[30.0, 25, 20, 10]]), np.array([[20.0, 20, 20, 20]])
    assert fidelity.drift_horizon(model, still) == 2
    assert fidelity.drift_horizon(still + 1, still) == 4


def test_a_model_that_ignores_actions_has_no_sensitivity():
    true, same = _noise((2, 3, 8, 8, 3)), _noise((2, 3, 8, 8, 3), 1)
    assert fidelity.action_sensitivity(true, same, same) == pytest.approx(0)
    assert fidelity.action_sensitivity(true, true, same) == pytest.approx(1)


class _Ruler:
    """Finds the brightest pixel; sure unless the picture is black."""

    def locate(self, frames):
        flat = frames[..., 0].flatten(1).float()
        best = flat.argmax(1)
        where = torch.stack([best % frames.shape[2], best // frames.shape[2]], 1).float() + 0.5
        parts = torch.stack([torch.full_like(where, 8.0), where], 1)
        sure = torch.stack([torch.ones(len(flat)), (flat.amax(1) > 0).float()], 1)
        return SimpleNamespace(positions=parts.numpy(), present=sure.numpy())


def test_positions_count_moved_and_lost_objects():
    frames = np.zeros((1, 3, 16, 16, 3), np.uint8)
    frames[0, 0, 4, 4] = frames[0, 1, 4, 9] = 255  # then nothing
    true = np.full((1, 4, 2, 2), 8.0, np.float32)
    true[0, :, 1] = [(4.5, 4.5), (4.5, 4.5), (8.5, 4.5), (12.5, 4.5)]
    errors = fidelity.position_errors(_Ruler(), frames, true)
    assert errors.hand.tolist() == [[0, 0, 0]]
    assert errors.objects[0, :2, 0].tolist() == [0, 1]
    assert errors.moved[0, :, 0].tolist() == [False, True, True]
    assert errors.lost[0, :, 0].tolist() == [False, False, True]
    assert errors.median(2)["moved_objects"] == 1 and np.isnan(errors.median(1)["moved_objects"])


def test_a_part_outside_the_picture_is_not_measured():
    true = np.array([[[[8.0, 8.0], [np.nan, np.nan]], [[8.0, 8.0], [99.0, 4.0]]]], np.float32)
    errors = fidelity.position_errors(_Ruler(), np.zeros((1, 1, 16, 16, 3), np.uint8), true)
    assert np.isnan(errors.objects).all() and not errors.lost.any()


def test_the_probe_learns_where_a_dot_is_and_whether_there_is_one(tmp_path):
    torch.manual_seed(0)
    probe = PositionProbe(PositionProbeConfig(parts=("dot",), image_size=32, width=16))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=4e-3)
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        frames, where = np.full((n, 32, 32, 3), 90, np.uint8), np.full((n, 1, 2), np.nan, np.float32)
        for i in range(n):
            if rng.random() < 0.7:
                x, y = rng.integers(3, 29, 2)
                frames[i, y - 2 : y + 2, x - 2 : x + 2] = (250, 20, 20)
                where[i] = x, y
        return torch.from_numpy(frames), torch.from_numpy(where)

    for _ in range(120):
        optimizer.zero_grad()
        loss, _ = probe_loss(probe, *draw(32))
        loss.backward()
        optimizer.step()
    frames, where = draw(100)
    probe.eval().save_pretrained(str(tmp_path))
    found = PositionProbe.from_pretrained(tmp_path).locate(frames)
    there = np.isfinite(where[:, 0, 0].numpy())
    error = np.linalg.norm(found.positions[there, 0] - where.numpy()[there, 0], axis=-1)
    assert np.median(error) < 1.5
    assert ((found.present[:, 0] > 0.5) == there).mean() > 0.9


def test_a_probe_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        PositionProbeConfig(parts=())


def test_imagined_logs_come_with_the_models_doubt():
    from tests.imagination.fakes import DotWorldModel

    frames, actions = _noise((3, 8, 64, 64, 3)), np.zeros((3, 7, 4), np.float32)
    states = np.zeros((3, 8, 4), np.float32)
    said, doubt = fidelity.imagine_logs(
        DotWorldModel(), frames, actions, states, torch.Generator().manual_seed(0), batch=2, chunk=5
    )
    assert said.shape == (3, 7, 64, 64, 3) and doubt.shape == (3, 2)


def test_the_page_draws_what_was_measured(tmp_path):
    from experiments.reports.fidelity import write_fidelity_report

    step = dict.fromkeys(("all", "hand", "objects", "moved_objects", "lost_share", "lost_share_moved"), 1.0)
    row = {
        "psnr": [20.0, 19.0],
        "ssim": [0.9, 0.8],
        "features": [1.0, None],
        "position": [step, step],
    }
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6, "episodes": 9}
    confusion = {"fp": 1, "tp": 2, "fn": 3, "tn": 4, "precision": rate, "recall": None}
    split = {
        "episodes": 9, "psnr_40": 20.0, "first_frame_psnr_40": 18.0, "position_error_px": step,
        "outcome_agreement": 0.9, "false_positive_rate": None, "drift_horizon": 40, "action_sensitivity": 0.5,
        "uncertainty_spearman": None, "failure_auroc": 0.6,
    }  # fmt: skip
    agreement = {k: {"mean": 0.9, "low": 0.8, "high": 1.0} for k in ("pearson", "spearman", "mmrv")}
    policies = {"<sft>": {"confusion": confusion}}
    facts = {
        "closed_loop": {"precision": rate, "recall": None, "confusion": confusion, "policies": policies},
        "by_horizon": {"model": row, "first_frame": row, "shuffled_actions": row},
        "by_split": {"seen": split},
        "ranking": {
            "policies": ["a"], "starts": 3, "success": {"imagined": [0.1], "real": [0.2]},
            "agreement": {"imagined": agreement},
        },
    }  # fmt: skip
    page = write_fidelity_report(json.loads(json.dumps(facts)), tmp_path / "page.html").read_text()
    assert page.count("<svg") == 6 and "&lt;sft&gt;" in page and "<sft>" not in page
    assert "http://" not in page and "https://" not in page

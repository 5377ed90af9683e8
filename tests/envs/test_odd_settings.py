"""Settings of a wrong type or size are refused with what was expected, in every simulator and in imagination."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import worldgym  # noqa: F401  (registers the ids)

IDS = ["worldgym/Tabletop-v0", "worldgym/MetaWorld-v0"]
ODD = [
    ({"domain": "soft", "gap": "0.5"}, r"gap must be a number in \[0, 1\], got '0.5'"),
    ({"domain": "soft", "gap": True}, r"gap must be a number"),
    ({"domain": "soft", "gap": float("nan")}, r"gap must be a number in \[0, 1\], got nan"),
    ({"domain": "soft", "looks": "a"}, r"looks must be a number"),
    ({"image_size": 16.5}, "image_size must be in 16..256 pixels.*got 16.5"),
    ({"image_size": "64"}, "image_size must be in .*got '64'"),
    ({"image_size": None}, "image_size must be in .*got None"),
    ({"horizon": 2.5}, "horizon=2.5; expected None or whole numbers >= 1"),
    ({"horizon": "40"}, "horizon='40'; expected None or whole"),
    ({"horizon": 0}, "horizon=0; expected None or whole"),
    ({"chunk": "5"}, "chunk='5'; expected None or whole"),
    ({"chunk": 2.5}, "chunk=2.5; expected None or whole"),
    ({"chunk": True}, "chunk=True; expected None or whole"),
    ({"terminate_on_success": "no"}, "terminate_on_success='no'; expected True or False"),
    ({"task": ["reach"]}, r"unknown task \['reach'\]"),
    ({"split": 1}, "unknown split 1"),
]


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(("settings", "said"), ODD, ids=lambda value: str(value)[:30])
def test_a_simulator_refuses_them(name, settings, said):
    if "MetaWorld" in name:
        pytest.importorskip("metaworld", reason="pip install 'worldgym[metaworld]'")
    with pytest.raises(ValueError, match=said):
        gym.make(name, **settings)


@pytest.mark.parametrize(("settings", "said"), [row for row in ODD if set(row[0]) <= {"horizon", "chunk"}], ids=str)
def test_imagination_refuses_them_alike(settings, said):
    with pytest.raises(ValueError, match=said):
        gym.make("worldgym/ImaginedTabletop-v0", **settings)


def test_numbers_of_numpy_are_numbers():
    env = gym.make("worldgym/Tabletop-v0", domain="soft", gap=np.float32(0.5), horizon=np.int64(10), chunk=np.int32(5))
    env.reset(seed=0)
    assert not env.step(env.action_space.sample())[3] and env.step(env.action_space.sample())[3]
    env.close()

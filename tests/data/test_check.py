"""`worldgym data check`, and damaged metadata."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_import_fields import TINY, change_rows
from test_imports import make

from worldgym.data.check import check
from worldgym.data.formats.lerobot_import import ImportSettings, LeRobotFolder, import_lerobot
from worldgym.errors import DatasetError


def test_a_check_lists_every_problem(tmp_path):
    root = make(tmp_path / "x", "v2.1", lengths=(4, 6), filmed=False)
    assert check(root).problems == []
    change_rows(root, 1, action=[[float("nan"), 0.0]] * 6)
    found = check(root)
    assert len(found.problems) == 1 and "episode 1" in found.problems[0] and "NaN" in found.problems[0]
    with pytest.raises(DatasetError, match="--skip 1; to skip all bad episodes, --skip-bad"):
        import_lerobot(root, tmp_path / "out", TINY)
    import_lerobot(root, tmp_path / "out", ImportSettings(image_size=16, skip="1"))
    assert check(tmp_path / "out").problems == []
    (data,) = (tmp_path / "out/data").rglob("*.parquet")
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    assert any("differs from the committed version" in problem for problem in check(tmp_path / "out").problems)


# ---- damaged metadata --------------------------------------------------------------------------------------------


@given(data=st.data())
def test_damaged_metadata_ends_in_a_sentence(tmp_path_factory, data):
    version = data.draw(st.sampled_from(["v2.1", "v3.0"]))
    root = make(tmp_path_factory.mktemp("d") / "x", version, lengths=(2, 2), filmed=False)
    info = json.loads((root / "meta/info.json").read_text())
    junk = st.sampled_from([None, True, -1, 1e400, "x", [], {}, [1], {"a": 1}, 10**30])
    key = data.draw(st.sampled_from(sorted(info)))
    if data.draw(st.booleans()):
        info[key] = data.draw(junk)
    else:
        feature = data.draw(st.sampled_from(sorted(info["features"])))
        info["features"][feature] = data.draw(junk)
    (root / "meta/info.json").write_text(json.dumps(info))
    try:
        list(LeRobotFolder(root).episodes(16))
    except DatasetError as error:
        assert str(root) in str(error)

"""Stored results of claims: damage, other kinds, other names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_claims import c1_rates, made_up

from experiments.claims.records import Records
from experiments.cli import main
from worldgym.errors import CheckpointError
from worldgym.utils import files

RECORD = Path(__file__).parents[2] / "docs" / "results" / "data" / "small" / "C1-sft-0.json"


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_result_is_noticed(tmp_path_factory, where, bit):
    folder = tmp_path_factory.mktemp("records")
    (folder / "small").mkdir()
    data = bytearray(RECORD.read_bytes())
    data[where % len(data)] ^= 1 << bit
    (folder / "small" / RECORD.name).write_bytes(data)
    try:
        found = Records(folder, "small").read("C1", "sft", 0)
    except CheckpointError as error:
        assert RECORD.name in str(error) and "worldgym claims run C1 --arms sft" in str(error)
    else:
        assert found == Records(RECORD.parents[1], "small").read("C1", "sft", 0), "white space"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "another result"), ({"arm": "bc_only"}, "another result"), ({"format": 2}, "another result"),
        ({"evaluations": []}, "evaluations is not a dict"), ({"budget": None}, "budget is not a dict"),
        ({"way": {}}, "way is not a list"), ({"evaluations": {"seen/greedy": {}}}, "not a string of 0 and 1"),
        ({"evaluations": {"seen/greedy": {"success": "01x"}}}, "not a string of 0 and 1"),
        ({"evaluations": {"seen/greedy": {"success": [True]}}}, "not a string of 0 and 1"),
    ],
)  # fmt: skip
def test_a_result_of_another_kind_is_named(tmp_path, change, said):
    records = made_up(tmp_path, {("C1", "sft"): 0.5})
    facts = {**records.read("C1", "sft", 0), **change}
    files.write_sealed(records.file("C1", "sft", 0), facts)
    with pytest.raises(CheckpointError, match=f"C1-sft-0.json.*{said}"):
        records.read("C1", "sft", 0)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"format": 1}', "\x00", "[" * 99_999])
def test_a_damaged_result_ends_every_command_in_a_sentence(tmp_path, text, capsys):
    records = made_up(tmp_path / "data", c1_rates())
    records.file("C1", "sft", 0).write_text(text)
    for command in ("list", "report"):
        assert main(["claims", command, "--results", str(tmp_path)]) == 2
        assert "C1-sft-0.json" in capsys.readouterr().err


def test_results_of_unequal_starts_or_measurements_are_named(tmp_path):
    records = made_up(tmp_path, {("C1", "bc_only"): 0.5})
    with pytest.raises(CheckpointError, match="no measurement seen/other; it has looked/imagined"):
        records.outcomes("C1", "bc_only", "seen/other")
    facts = records.read("C1", "bc_only", 1)
    facts["evaluations"]["seen/greedy"]["success"] = "01"
    records.write("C1", "bc_only", 1, facts)
    with pytest.raises(CheckpointError, match="the same number for seeds"):
        records.outcomes("C1", "bc_only", "seen/greedy")


def test_files_of_other_names_are_no_results(tmp_path):
    records = made_up(tmp_path, {("E2", "few-10"): 0.5, ("E2", "few_bc-10"): 0.5})
    for name in ("E2-few-10-x.json", "E2-few-10-0 (copy).json", ".tmp-0", "E2-.json"):
        (tmp_path / "small" / name).write_text("{}")
    assert records.seeds("E2", "few-10") == [0, 1, 2] and records.seeds("E2", "few") == []
    assert records.arms("E2") == ["few-10", "few_bc-10"] and records.arms("E") == []

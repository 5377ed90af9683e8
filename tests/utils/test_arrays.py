"""Archives of arrays: what a file claims is compared with what it holds before anything is allocated."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldgym.errors import CheckpointError
from worldgym.utils.arrays import Field, read_arrays, write_arrays

FIELDS = {
    "images": Field("uint8", ("N", "H", "W", 3)),
    "texts": Field("text", ("N",)),
    "states": Field("float", ("N", "S"), required=False),
    "goals": Field("float", ("N", "S"), required=False, finite=False),
    "steps": Field("int", ("N",), required=False),
}
GOOD = {
    "images": np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
    "texts": np.array(["a", "bc"]),
    "states": np.zeros((2, 5), np.float32),
    "goals": np.full((2, 5), np.nan, np.float32),
    "steps": np.arange(2),
}


def read(path):
    return read_arrays(path, FIELDS, "Write it again")


def header(shape, kind="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("dense", [False, True])
def test_arrays_survive_the_disk_and_extra_ones_are_not_read(tmp_path, dense):
    path = write_arrays(tmp_path / "x", {**GOOD, "more": np.zeros(3)}, dense)
    assert all(np.load(path)[name].tobytes() == array.tobytes() for name, array in GOOD.items())
    found = read(path)
    assert path.name == "x.npz" and set(found) == set(GOOD)
    for name, array in GOOD.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_arrays_are_the_same_bytes(tmp_path, dense):
    files = [write_arrays(tmp_path / name, GOOD, dense).read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_frames_of_several_scenes_take_less_space(tmp_path):
    scenes = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    frames = scenes[np.arange(60) % 4]  # the last frame of a scene is farther back than deflate looks
    sizes = [
        write_arrays(tmp_path / f"{dense}", {"images": frames}, dense).stat().st_size for dense in (False, True)
    ]
    assert sizes[1] < 0.2 * sizes[0]
    zeros = write_arrays(tmp_path / "zeros", {"images": np.zeros((400, 64, 64, 3), np.uint8)}, True)
    assert not read_arrays(zeros, {"images": FIELDS["images"]}, "")["images"].any()


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "directory agrees"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_claim_of_many_gigabytes_is_a_sentence_and_allocates_nothing(tmp_path, method, forged):
    data = header((3 * 2**20, 64, 64, 3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("images.npy", data + b"\0" * 1000)
        archive.writestr("texts.npy", header((0,), "<U1"))
        if forged:
            archive.getinfo("images.npy").file_size = len(data) + 36 * 2**30
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"claims 38,654,\d+,\d+ bytes|claims 38,654,705,664"):
        read(tmp_path / "x.npz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_arrays_beyond_the_limit_are_refused_by_their_sum(tmp_path):
    path = write_arrays(tmp_path / "x", GOOD)
    with pytest.raises(CheckpointError, match="more than the limit of 100"):
        read_arrays(path, FIELDS, "Write it again", limit=100)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("images", GOOD["images"].reshape(2, -1), "expected uint8"),
        ("images", GOOD["images"].reshape(2, 16, 3), "expected uint8"),
        ("images", GOOD["images"].astype(np.float32), "images is float32"),
        ("images", GOOD["images"][..., :1], "with 3"),
        ("images", GOOD["images"][:0], "it is empty"),
        ("texts", GOOD["texts"][:1], "with N = 2"),
        ("texts", np.arange(2), "expected text"),
        ("texts", np.array([b"a", b"b"]), "expected text"),
        ("states", np.full((2, 5), np.nan, np.float32), "10 values that are NaN"),
        ("states", np.array(["a", "b"]), "expected float"),
        ("goals", np.zeros((2, 4), np.float32), "with S = 5"),
        ("steps", np.zeros(2), "expected int"),
    ],
)
def test_an_array_of_another_kind_or_shape_is_named(tmp_path, name, value, said):
    path = write_arrays(tmp_path / "x", {**GOOD, name: value})
    with pytest.raises(CheckpointError, match=f"(?s)x.npz.*{said}.*Write it again"):
        read(path)


def test_objects_are_neither_written_nor_loaded(tmp_path):
    with pytest.raises(TypeError, match="images holds Python objects"):
        write_arrays(tmp_path / "x", {"images": np.array([{}], object)})
    np.savez(tmp_path / "x.npz", **{**GOOD, "images": np.array([{}], object)})
    with pytest.raises(CheckpointError, match="Python objects"):
        read(tmp_path / "x.npz")


def test_what_is_absent_is_listed(tmp_path):
    with pytest.raises(CheckpointError, match="is missing. Write it again"):
        read(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="lacks images, texts; it has other"):
        read(write_arrays(tmp_path / "x", {"other": np.zeros(1)}))


@given(data=st.binary(max_size=200))
def test_any_bytes_end_in_the_projects_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.npz"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="Write it again"):
        read(path)


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), dense=st.booleans())
def test_a_flipped_bit_gives_the_same_values_or_the_projects_error(tmp_path_factory, where, bit, dense):
    path = write_arrays(tmp_path_factory.mktemp("flip") / "x.npz", GOOD, dense)
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read(path)
    except CheckpointError:
        return
    for name, array in found.items():
        assert array.tobytes() == GOOD[name].tobytes()


@given(keep=st.integers(0, 10**6), dense=st.booleans())
def test_a_cut_file_is_refused(tmp_path_factory, keep, dense):
    path = write_arrays(tmp_path_factory.mktemp("cut") / "x.npz", GOOD, dense)
    data = path.read_bytes()
    path.write_bytes(data[: keep % len(data)])
    with pytest.raises(CheckpointError, match="Write it again"):
        read(path)

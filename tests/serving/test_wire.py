"""Messages survive the way through msgpack, and damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldgym.serving.wire import WireError, pack, unpack

ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.int64, np.float32, np.float16, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(ARRAYS, st.text(max_size=20))
def test_arrays_and_text_come_back_as_they_were(array, text):
    back = unpack(pack({"a": array, "b": [array, text], "n": None}))
    np.testing.assert_array_equal(back["a"], array)
    assert back["a"].dtype == array.dtype and back["b"][1] == text and back["n"] is None
    assert back["a"].flags.writeable


def test_transposed_arrays_and_tensors_are_sent_in_c_order():
    array = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(unpack(pack(array)), array)
    np.testing.assert_array_equal(unpack(pack(torch.arange(4.0))), np.arange(4.0))


@given(ARRAYS.filter(lambda a: a.nbytes > 4), st.data())
def test_a_message_cut_at_any_byte_is_refused(array, data):
    whole = pack({"a": array})
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(WireError):
        unpack(whole[:cut])


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array(["text"]), np.array([1j]), object(), {1, 2}, 2**70]
)
def test_what_is_no_plain_data_is_not_sent(value):
    with pytest.raises(WireError, match="can't be sent"):
        pack({"x": value})


@pytest.mark.parametrize(
    "array",
    [
        {b"__ndarray__": True, b"data": b"abc", b"dtype": "<f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [-1]},
        {b"__ndarray__": True, b"data": b"abcd", b"dtype": "|O", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"abcd", b"dtype": "none", b"shape": [1]},
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1]},
        {b"__npgeneric__": True, b"data": 1, b"dtype": "|V8"},
    ],
)
def test_arrays_with_wrong_sizes_or_types_are_refused(array):
    import msgpack

    with pytest.raises(WireError):
        unpack(msgpack.packb(array))

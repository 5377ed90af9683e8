"""Our PNG files are ordinary PNG files, and damaged ones are noticed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from worldgym.data.codecs.png import decode_png, encode_png

frames = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(lambda s: hnp.arrays(np.uint8, (*s, 3)))


@settings(max_examples=40, deadline=None)
@given(frame=frames)
def test_pillow_and_we_read_each_other(frame: np.ndarray) -> None:
    data = encode_png(frame)
    assert np.array_equal(decode_png(data, *frame.shape[:2]), frame)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), frame)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png")
    assert np.array_equal(decode_png(buffer.getvalue()), frame)


def test_damaged_bytes_are_refused() -> None:
    data = encode_png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for bad in (b"", b"not a png at all" * 10, data[:-30], data[:60] + b"\x00\xff" + data[62:]):
        with pytest.raises(ValueError, match="PNG"):
            decode_png(bad)
    with pytest.raises(ValueError, match="16x16 px, expected 64x64"):
        decode_png(data, 64, 64)


def test_only_uint8_rgb_is_encoded() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros((4, 4, 3), np.float32))

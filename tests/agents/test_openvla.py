"""Published OpenVLA checkpoints: a tiny one, written in exactly their layout, loads, acts, and is fine-tuned."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers", reason="needs the extra `vla`")

from agents import load_policy
from agents.policies.hf.openvla import unnormalised
from agents.policies.hf.policy import HFVLAPolicy
from agents.policies.hf.prismatic import DINOV2_L, SIGLIP_SO, Prismatic
from worldgym.errors import CheckpointError, ConfigError
from worldgym.specs import ActionSpec, GripperRule, Specs
from worldgym.suite import load_suite

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
TOWERS = [
    {"width": 16, "depth": 3, "heads": 2, "ffn": 32, "registers": 4, "layer_scale": True,
     "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"width": 24, "depth": 3, "heads": 2, "ffn": 40, "pool": True},
]  # fmt: skip
TEXT = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 704, "pad_token_id": 640,
        "torch_dtype": "bfloat16"}  # fmt: skip
BRIDGE = {"q01": [-0.03, -0.04, -0.04, -0.08, -0.09, -0.2, 0.0], "q99": [0.03, 0.04, 0.04, 0.08, 0.09, 0.2, 1.0],
          "mask": [True] * 6 + [False]}  # fmt: skip
CONFIG = {
    "architectures": ["OpenVLAForActionPrediction"],
    "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
    "model_type": "openvla", "vision_backbone_id": "dinosiglip-vit-so-224px", "use_fused_vision_backbone": True,
    "image_sizes": [28, 28], "towers": TOWERS, "n_action_bins": 256, "pad_to_multiple_of": 64, "text_config": TEXT,
    "norm_stats": {"bridge_orig": {"action": BRIDGE},
                   "fractal20220817_data": {"action": {**BRIDGE, "q01": [-1.0] * 7}}},
}  # fmt: skip


def llama_tokenizer() -> str:
    """A tokenizer as Llama's: a token that begins a sentence, an empty word, and one token per character."""
    from tokenizers import Tokenizer, models, normalizers, processors

    letters = ["<unk>", "<s>", "</s>", "\u2581", *map(chr, range(32, 127)), "\n"]
    made = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made.to_str()


def robot() -> Specs:
    """Specs of a robot with seven actions, in the units of BridgeData."""
    seen = load_suite(None).specs.observation
    high = (0.05, 0.05, 0.05, 0.25, 0.25, 0.25, 1.0)
    low = (*(-value for value in high[:6]), 0.0)
    units = ("m",) * 3 + ("rad",) * 3 + ("1",)
    return Specs(seen, ActionSpec(NAMES, units, 5.0, low, high, GripperRule(6, open=1.0, closed=0.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in two shards."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("openvla")
    model = Prismatic(CONFIG)
    for name, weight in model.named_parameters():
        if name.endswith("scale_factor"):
            torch.nn.init.ones_(weight)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[: len(names) // 2]}
    shards["model-00002-of-00002.safetensors"] = names[len(names) // 2 :]
    for file, some in shards.items():
        save_file({name: weights[name] for name in some}, path / file)
    where = {name: file for file, some in shards.items() for name in some}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text(llama_tokenizer())
    return path


def observed(batch: int = 2) -> dict:
    rng = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (batch, 40, 40, 3), generator=rng, dtype=torch.uint8)
    texts = ["put the carrot on the plate", "open the drawer"][:batch]
    return {"image": image, "state": torch.zeros(batch, 4), "instruction": texts}


def test_modules_have_the_names_and_shapes_of_the_published_index():
    with torch.device("meta"):
        names = {
            name: tuple(value.shape)
            for name, value in Prismatic({**CONFIG, "towers": None}).state_dict().items()
        }
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    expected = {
        f"{dino}.cls_token": (1, 1, 1024), f"{dino}.reg_token": (1, 4, 1024), f"{dino}.pos_embed": (1, 256, 1024),
        f"{dino}.patch_embed.proj.weight": (1024, 3, 14, 14), f"{dino}.blocks.23.attn.qkv.weight": (3072, 1024),
        f"{dino}.blocks.0.ls1.scale_factor": (1024,), f"{dino}.blocks.0.mlp.fc1.bias": (4096,),
        f"{dino}.norm.bias": (1024,),
        f"{siglip}.pos_embed": (1, 256, 1152), f"{siglip}.blocks.26.mlp.fc2.weight": (1152, 4304),
        f"{siglip}.attn_pool.latent": (1, 1, 1152), f"{siglip}.attn_pool.kv.weight": (2304, 1152),
        f"{siglip}.attn_pool.mlp.fc1.weight": (4304, 1152), "projector.fc1.weight": (8704, 2176),
        "projector.fc2.weight": (32, 8704), "projector.fc3.bias": (32,),
        "language_model.model.embed_tokens.weight": (704, 32), "language_model.lm_head.weight": (704, 32),
        "language_model.model.layers.0.self_attn.q_proj.weight": (32, 32), "language_model.model.norm.weight": (32,),
    }  # fmt: skip
    assert {name: names.get(name) for name in expected} == expected
    assert f"{siglip}.cls_token" not in names and f"{siglip}.blocks.0.ls1.scale_factor" not in names
    assert (DINOV2_L.depth, SIGLIP_SO.depth) == (24, 27)


def test_vision_towers_are_those_of_timm(folder):
    """The two towers against transformers' own DINOv2 with registers, the weights carried over."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    tower = Prismatic(CONFIG).vision_backbone.featurizer
    theirs = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=28,
            patch_size=14,
            num_register_tokens=4,
        )  # fmt: skip
    ).eval()
    own = tower.state_dict()
    with torch.no_grad():
        embedded = theirs.embeddings
        embedded.cls_token.copy_(own["cls_token"])
        embedded.register_tokens.copy_(own["reg_token"])
        embedded.position_embeddings.copy_(torch.cat([torch.zeros(1, 1, 16), own["pos_embed"]], 1))
        embedded.patch_embeddings.projection.weight.copy_(own["patch_embed.proj.weight"])
        embedded.patch_embeddings.projection.bias.copy_(own["patch_embed.proj.bias"])
        for i in range(2):
            block, mine, prefix = theirs.state_dict(), f"blocks.{i}.", f"encoder.layer.{i}."
            names = {"layer_scale1.lambda1": "ls1.scale_factor", "layer_scale2.lambda1": "ls2.scale_factor"}
            for part in ("weight", "bias"):
                names |= {f"{layer}.{part}": f"{layer}.{part}" for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
                names[f"attention.o_proj.{part}"] = f"attn.proj.{part}"
                for name, value in zip("qkv", own[f"{mine}attn.qkv.{part}"].chunk(3), strict=True):
                    block[f"{prefix}attention.{name}_proj.{part}"].copy_(value)
            for name, ours in names.items():
                block[prefix + name].copy_(own[mine + ours])
        images = torch.rand(2, 3, 28, 28)
        hidden = theirs((images - tower.mean) / tower.std, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(tower(images), hidden[:, 5:], atol=1e-4, rtol=1e-4)


def test_actions_are_unnormalised_by_the_published_formula():
    numbers = np.array([-1.0, 0.0, 1.0, 0.5, -0.5, 0.25, 1.0])
    assert unnormalised(numbers, BRIDGE) == pytest.approx([-0.03, 0.0, 0.04, 0.04, -0.045, 0.05, 1.0])
    uneven = {"q01": [0.0, -2.0], "q99": [1.0, 6.0]}
    assert unnormalised(np.array([0.0, -0.5]), uneven) == pytest.approx([0.5, 0.0])


def test_a_checkpoint_acts_in_the_units_of_the_environment(folder):
    specs = robot()
    policy = HFVLAPolicy.from_vlm(folder, specs, unnorm_key="bridge_orig").eval()
    assert policy.chunk == 1 and policy.config.begin_id == 3
    ids = policy.action_ids
    assert (int(ids[0]), int(ids[-1])) == (639, 385), (
        "the lowest action is the last id in front of the padding"
    )
    # cell of a token as the published model computes it
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    for token in (639, 500, 385):
        cell = int(np.clip(640 - token - 1, 0, 254))
        physical = unnormalised(np.full(7, centres[cell]), BRIDGE)
        wanted = specs.action.normalise(physical)
        found = policy.actions_of(torch.full((7,), int((ids == token).nonzero())))
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    out = policy.act(observed(), temperature=0.0)
    assert out.actions.shape == (2, 1, 7)
    torch.testing.assert_close(
        policy.evaluate(observed(), out.trace).log_probs["action"],
        out.log_probs["action"],
        atol=1e-4,
        rtol=1e-4,
    )
    physical = specs.action.denormalise(out.actions.numpy())
    assert (physical[..., 0] >= -0.0301).all() and (physical[..., 0] <= 0.0301).all()


def test_the_sequence_is_that_of_the_published_model(folder):
    policy = HFVLAPolicy.from_vlm(folder, robot(), unnorm_key="bridge_orig").eval()
    seen = observed(1)
    ids = policy.words.tokenizer.encode(
        "In: What action should the robot take to put the carrot on the plate?\nOut:"
    ).ids
    assert ids[0] == 1, "the token that begins a sentence comes before the image"
    tokens = policy.act(seen, temperature=0.0).trace["tokens"].flatten()
    with torch.no_grad():
        model = policy.vlm
        words = model.get_input_embeddings()(torch.tensor([[*ids, 3]]))
        embeds = torch.cat([words[:, :1], model.image_tokens(seen["image"]), words[:, 1:]], 1)
        for token in tokens:
            logits = model.language_model(inputs_embeds=embeds).logits[0, -1]
            best = policy.action_ids[logits[policy.action_ids].argmax()]
            assert int(best) == int(policy.action_ids[token])
            embeds = torch.cat([embeds, model.get_input_embeddings()(best.view(1, 1))], 1)
    upper = {**seen, "instruction": ["Put the Carrot on the Plate"]}
    assert torch.equal(policy.act(upper, temperature=0.0).trace["tokens"].flatten(), tokens)


def test_a_checkpoint_is_fine_tuned_and_saved(folder, tmp_path):
    pytest.importorskip("peft", reason="needs the extra `vla`")
    specs, seen = robot(), observed()
    lora = {"rank": 4, "alpha": 16.0}
    policy = HFVLAPolicy.for_data(specs, str(folder), settings={"unnorm_key": "bridge_orig", "lora": lora})
    actions = np.stack([np.full((1, 7), 0.4, np.float32), np.full((1, 7), -0.4, np.float32)])
    batch = {"observation": seen, "actions": actions}
    before = float(policy.loss(batch)["action"].detach())
    optimizer = torch.optim.Adam(policy.parameters_of("all"), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        policy.loss(batch)["action"].backward()
        optimizer.step()
    # the output layer of these random weights is small and stays as it is: adapters alone can't make a token certain
    assert float(policy.loss(batch)["action"].detach()) < before - 0.2
    policy.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert torch.equal(
        again.act(seen, temperature=0.0).actions, policy.eval().act(seen, temperature=0.0).actions
    )


def test_what_does_not_fit_is_named(folder, tmp_path):
    def broken(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        return tmp_path

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    load = HFVLAPolicy.from_vlm
    with pytest.raises(ConfigError, match="choose one, unnorm_key='bridge_orig', among bridge_orig, fractal"):
        load(folder, robot())
    with pytest.raises(ConfigError, match="unnorm_key is 'kuka'; the statistics in .* are of bridge_orig"):
        load(folder, robot(), unnorm_key="kuka")
    with pytest.raises(ConfigError, match="actions have 7 dimensions, the data or environment 4"):
        load(folder, load_suite(None).specs, unnorm_key="bridge_orig")
    with pytest.raises(CheckpointError, match="has no action statistics"):
        load(broken(norm_stats=None), robot())
    with pytest.raises(CheckpointError, match="lack q01 or q99"):
        load(broken(norm_stats={"a": {"action": {"mean": [0.0]}}}), robot())
    with pytest.raises(ConfigError, match="vision backbone is 'clip'; known are dinosiglip-vit-so-224px"):
        load(broken(towers=None, vision_backbone_id="clip"), robot(), unnorm_key="bridge_orig")
    with pytest.raises(CheckpointError, match="has the shape .* but the config asks for"):
        load(broken(text_config={**TEXT, "intermediate_size": 48}), robot(), unnorm_key="bridge_orig")
    with pytest.raises(CheckpointError, match="are missing, such as"):
        load(broken(text_config={**TEXT, "num_hidden_layers": 3}), robot(), unnorm_key="bridge_orig")
    broken()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002"):
        load(tmp_path, robot(), unnorm_key="bridge_orig")
    reversed_gripper = ActionSpec(NAMES, robot().action.units, 5.0, robot().action.low, robot().action.high,
                                  GripperRule(6, open=0.0, closed=1.0))  # fmt: skip
    with pytest.raises(ConfigError, match="gripper: the checkpoint's lowest value is not below its highest"):
        load(folder, Specs(robot().observation, reversed_gripper), unnorm_key="bridge_orig")
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"mine": {"action": BRIDGE}}))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(
        (folder / "model-00002-of-00002.safetensors").read_bytes()
    )
    assert load(tmp_path, robot(), unnorm_key="mine").config.action_low[0] == pytest.approx(-0.6)


# -- OpenVLA-OFT -------------------------------------------------------------------------------------------
PROPRIO = {"q01": [-0.5, -0.5, 0.0, 0.0], "q99": [0.5, 0.5, 1.0, 0.1]}


class PublishedHead(torch.nn.Module):
    """The action head as the published file names its tensors."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        block = [torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.ReLU()]
        self.model = torch.nn.Module()
        self.model.layer_norm1 = torch.nn.LayerNorm(width * dims)
        self.model.fc1 = torch.nn.Linear(width * dims, width)
        self.model.mlp_resnet_blocks = torch.nn.ModuleList()
        for _ in range(2):
            part = torch.nn.Module()
            part.ffn = torch.nn.Sequential(*copy.deepcopy(block))
            self.model.mlp_resnet_blocks.append(part)
        self.model.layer_norm2 = torch.nn.LayerNorm(width)
        self.model.fc2 = torch.nn.Linear(width, dims)

    def forward(self, x):
        m = self.model
        x = torch.relu(m.fc1(m.layer_norm1(x)))
        for block in m.mlp_resnet_blocks:
            x = x + block.ffn(x)
        return m.fc2(m.layer_norm2(x))


@pytest.fixture(scope="module")
def oft(folder, tmp_path_factory):
    """The same model with an action head and a projector of proprioception, and both of these as modules."""
    path = tmp_path_factory.mktemp("oft")
    shutil.copytree(folder, path, dirs_exist_ok=True)
    torch.manual_seed(1)
    layers = {"fc1": torch.nn.Linear(4, 32), "fc2": torch.nn.Linear(32, 32)}
    head, proprio = PublishedHead(32, 7), torch.nn.ModuleDict(layers)
    for name, part in (("action_head", head), ("proprio_projector", proprio)):
        save_file({f"module.{key}": value for key, value in part.state_dict().items()}, path / f"{name}.safetensors")
    told = {"libero_spatial_no_noops": {"action": BRIDGE, "proprio": PROPRIO}}
    (path / "dataset_statistics.json").write_text(json.dumps(told))
    return path, head, proprio


def test_a_published_oft_checkpoint_predicts_what_its_parts_compute(oft):
    """Against a computation on transformers' model from the published description: places, mask, shifted slots."""
    path, head, proprio = oft
    policy = HFVLAPolicy.from_vlm(path, robot(), unnorm_key="libero_spatial_no_noops").eval()
    assert (policy.chunk, policy.config.head, policy.config.slots) == (8, "l1", "oft")
    seen = {**observed(2), "state": torch.tensor([[0.1, -0.2, 0.9, 0.02], [3.0, 0.0, 0.5, 0.05]])}
    low, high = (torch.tensor(PROPRIO[end]) for end in ("q01", "q99"))
    normal = (2 * (seen["state"] - low) / (high - low) - 1).clamp(-1, 1)
    model, expected = policy.vlm.language_model.model, []
    with torch.no_grad():
        for row in range(2):
            prompt = f"In: What action should the robot take to {seen['instruction'][row]}?\nOut:"
            words = policy.words.ids([prompt])[0][0]
            words = torch.cat([words, torch.tensor([policy.config.begin_id])])
            embeds = policy.vlm.get_input_embeddings()(words)
            patches = policy.vlm.image_tokens(seen["image"][row : row + 1])[0]
            state = proprio["fc2"](torch.nn.functional.gelu(proprio["fc1"](normal[row])))
            end = policy.vlm.get_input_embeddings()(torch.tensor([policy.config.end_id]))
            sequence = torch.cat([embeds[:1], patches, state[None], embeds[1:], torch.zeros(56, 32), end])[None]
            mask = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
            out = model(inputs_embeds=sequence, attention_mask=mask, use_cache=False).last_hidden_state[0]
            first = len(patches) + 1 + len(words) - 1  # patches with proprioception, and the prompt without its begin
            expected.append(head(out[first : first + 56].reshape(8, -1)))
        drawn = policy.act(seen, temperature=0.0)
    torch.testing.assert_close(drawn.trace["drawn"], torch.stack(expected), atol=1e-4, rtol=1e-4)
    physical = unnormalised(torch.stack(expected).numpy(), BRIDGE)
    wanted = robot().action.normalise(physical)
    np.testing.assert_allclose(drawn.actions.numpy(), wanted, atol=1e-4)


def test_an_oft_policy_is_fine_tuned_saved_and_loaded(oft, tmp_path):
    policy = HFVLAPolicy.from_vlm(oft[0], robot(), unnorm_key="libero_spatial_no_noops", chunk=5)
    actions = np.full((2, 5, 7), 0.2, np.float32)
    optimizer = torch.optim.Adam(policy.parameters_of("action"), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = policy.loss({"observation": observed(2), "actions": actions})["action"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    policy.eval().save_pretrained(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    torch.testing.assert_close(
        again.act(observed(2), temperature=0.0).actions, policy.act(observed(2), temperature=0.0).actions
    )


def test_parts_that_are_pickles_or_do_not_fit_say_what_to_type(oft, tmp_path):
    def broken(change) -> None:
        path = tmp_path / "broken"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(oft[0], path)
        change(path)
        HFVLAPolicy.from_vlm(path, robot(), unnorm_key="libero_spatial_no_noops")

    def pickled(path) -> None:
        (path / "action_head.safetensors").unlink()
        (path / "action_head--150000_checkpoint.pt").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"is a pickle.*weights_only=True.*action_head.safetensors"):
        broken(pickled)
    with pytest.raises(CheckpointError, match="`proprio`"):
        broken(lambda path: (path / "dataset_statistics.json").write_text(json.dumps(
            {"libero_spatial_no_noops": {"action": BRIDGE}})))  # fmt: skip
    with pytest.raises(ConfigError, match="reads 5 numbers of proprioception"):
        five = {"fc1.weight": torch.zeros(32, 5), "fc1.bias": torch.zeros(32), "fc2.weight": torch.zeros(32, 32)}
        stats = {"action": BRIDGE, "proprio": {"q01": [0.0] * 5, "q99": [1.0] * 5}}

        def other(path) -> None:
            save_file(five, path / "proprio_projector.safetensors")
            (path / "dataset_statistics.json").write_text(json.dumps({"libero_spatial_no_noops": stats}))

        broken(other)
    with pytest.raises(CheckpointError, match="has the shape .* expected"):
        broken(lambda path: save_file({"model.fc2.weight": torch.zeros(3, 32)}, path / "action_head.safetensors"))


def test_the_command_that_a_message_names_converts_a_part(tmp_path):
    import subprocess
    import sys

    from agents.policies.hf.oft import CONVERT

    head = PublishedHead(8, 2)
    torch.save({f"module.{key}": value for key, value in head.state_dict().items()}, tmp_path / "action_head--1.pt")
    command = CONVERT.format(file="action_head--1.pt", name="action_head").replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "action_head.safetensors")) == set(head.state_dict())

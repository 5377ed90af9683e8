#!/usr/bin/env bash
# transformers 5.23.0: activation_checkpointing_enable() (gradient_checkpointing_enable in earlier versions) on a
# vision-language model whose vision tower is frozen (requires_grad=False on every weight of it) puts that tower into the
# backward pass. Without it, the tower's output does not require gradients and nothing of the tower is differentiated. With
# it, a hook makes the output of the tower's embeddings require gradients, so backward recomputes and differentiates every
# frozen layer, for gradients that nobody uses. The gradients of the trained weights are the same. Here a training step
# takes 2.0 times the operations of one without checkpointing; with the tower under torch.no_grad(), which is the remedy,
# it takes 1.1 times, which is what recomputing the language model costs.
# Exits 0 while this holds, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" \
    torch==2.13.0 numpy==2.4.6 pillow==13.0.0 transformers==5.23.0
cat > "$folder/run.py" <<'PY'
import sys

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

torch.set_num_threads(1)
TEXT = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64,
          "patch_size": 8}


def step(checkpointing, tower_without_gradients=False):
    """Whether the tower's output requires gradients, the operations of a step, and a gradient of the language model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("smolvlm", text_config=TEXT, vision_config=VISION, scale_factor=2, image_token_id=299)
    model = AutoModelForImageTextToText.from_config(config).train()
    for name, weight in model.named_parameters():
        if "vision_model" in name or "connector" in name:
            weight.requires_grad_(False)
    if checkpointing:
        model.activation_checkpointing_enable()
    tower = model.model.vision_model
    if tower_without_gradients:
        tower.forward = torch.no_grad()(tower.forward)
    seen = []
    tower.register_forward_hook(lambda m, a, out: seen.append(out.last_hidden_state.requires_grad))
    torch.manual_seed(1)
    ids = torch.cat([torch.full((1, 16), 299), torch.randint(3, 200, (1, 6))], 1)
    with FlopCounterMode(display=False) as count:
        model(input_ids=ids, pixel_values=torch.randn(1, 1, 3, 64, 64), labels=ids, use_cache=False).loss.backward()
    return seen[0], count.get_total_flops(), model.lm_head.weight.grad


plain, again, mended = step(False), step(True), step(True, tower_without_gradients=True)
print("transformers", transformers.__version__, "torch", torch.__version__)
for name, (requires, operations, _) in {
    "no checkpointing": plain, "checkpointing": again, "checkpointing, tower under no_grad": mended
}.items():
    print(f"{name:<35} tower's output requires gradients: {requires!s:<6} operations: {operations / plain[1]:.2f}")
same = all(torch.allclose(plain[2], other[2], atol=1e-6) for other in (again, mended))
print("same gradient of the output layer:", same)
holds = not plain[0] and again[0] and not mended[0] and same
sys.exit(0 if holds and again[1] > 1.8 * plain[1] and mended[1] < 1.4 * plain[1] else 1)
PY
PYTHONPATH="$folder/site" python3 -W ignore "$folder/run.py"

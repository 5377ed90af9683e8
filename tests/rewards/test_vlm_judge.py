"""The vision-language judge, end to end on a tiny LLaVA built here: both ways of asking, through the Auto classes."""

from __future__ import annotations

import pytest
import torch

from rewards import VlmJudge, VlmJudgeConfig, load_judge
from worldgym.errors import CheckpointError, ConfigError

CORPUS = [
    "yes", "no", "Yes", "No", "Final Score: 1", "Final Score: 0", "These frames show a robot at a table.",
    "Does the last frame show the instruction fulfilled? Answer yes or no.", "USER: ASSISTANT:",
]  # fmt: skip
IMAGE, SIZE = "<image>", 16


def tiny_llava():
    """A LLaVA of 0.1 M random weights with a real tokenizer and processor, nothing from the hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", IMAGE]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE],
    )
    tokenizer.image_token = IMAGE
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8,
        projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
        )
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )  # fmt: skip
    return model, processor


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


def videos(count=3, steps=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, steps, 64, 64, 3), dtype=torch.uint8, generator=generator)


WORDS = ["reach the red cube", "put the green ball in the tray", "push the blue cylinder to the left"]


def test_yes_against_no_is_read_from_the_next_word(llava):
    judge = VlmJudge(*llava)
    verdict = judge.score(videos(), WORDS)
    assert verdict.valid.all() and ((verdict.p_success > 0) & (verdict.p_success < 1)).all()
    assert all(0 < row["said_either"] < 1 for row in verdict.raw)
    yes = llava[1].tokenizer("yes")["input_ids"][0]

    def insist(module, inputs, logits):  # a model that cannot help saying yes
        return logits + 30 * torch.nn.functional.one_hot(torch.tensor(yes), logits.shape[-1])

    hook = llava[0].lm_head.register_forward_hook(insist)
    insisted = judge.score(videos(), WORDS)
    hook.remove()
    assert (insisted.p_success > 0.99).all() and all(row["said_either"] > 0.99 for row in insisted.raw)
    assert torch.equal(judge.score(videos(), WORDS).p_success, verdict.p_success)


def test_rows_do_not_depend_on_their_neighbours(llava):
    judge = VlmJudge(*llava)
    whole = judge.score(videos(), WORDS).p_success
    one = torch.cat([judge.score(videos()[i : i + 1], WORDS[i : i + 1]).p_success for i in range(3)])
    assert torch.allclose(whole, one, atol=1e-4), "sentences of other lengths are padded on the left"
    small = VlmJudge(*llava, VlmJudgeConfig(max_batch=2)).score(videos(), WORDS).p_success
    assert torch.allclose(whole, small, atol=1e-4)


def test_words_and_pictures_both_matter(llava):
    judge = VlmJudge(*llava)
    base = judge.score(videos(1), WORDS[:1]).p_success
    assert not torch.equal(base, judge.score(videos(1), WORDS[1:2]).p_success)
    other = videos(1)
    other[:, -1] = 255 - other[:, -1]
    assert not torch.equal(base, judge.score(other, WORDS[:1]).p_success)


def test_written_answers_vote_and_what_cannot_be_read_is_invalid(llava, monkeypatch):
    judge = VlmJudge(*llava, VlmJudgeConfig(mode="score", votes=3, max_tokens=4))
    verdict = judge.score(videos(2), WORDS[:2])
    assert not verdict.valid.any(), "a random model writes no score, and that is no failure of the policy"
    assert all(len(row["texts"]) == 3 and row["scores"] == [] for row in verdict.raw)
    said = ["Final Score: 1", "no idea", "... Final Score: 0", "Final Score: 1"] + ["Final Score: 1"] * 2
    monkeypatch.setattr(type(llava[1]), "batch_decode", lambda self, *a, **k: said)
    verdict = judge.score(videos(2), WORDS[:2])
    assert verdict.p_success.tolist() == pytest.approx([0.5, 1.0]) and verdict.valid.tolist() == [True, True]


def test_written_answers_follow_the_generator_and_leave_torch_s_alone(llava):
    config = VlmJudgeConfig(mode="score", votes=2, max_tokens=6)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    judges = [VlmJudge(*llava, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    texts = [judge.score(videos(1), WORDS[:1]).raw[0]["texts"] for judge in judges]
    assert texts[0] == texts[1] != texts[2] and torch.equal(torch.rand(1), expected)


def test_it_comes_back_through_the_auto_classes_with_its_settings(llava, tmp_path):
    judge = VlmJudge(*llava, VlmJudgeConfig(threshold=0.7, stride=2))
    judge.save_pretrained(tmp_path / "vlm")
    again = load_judge(tmp_path / "vlm")
    assert isinstance(again, VlmJudge) and again.config == judge.config and again.name == "vlm:llava"
    assert torch.allclose(
        again.score(videos(), WORDS).p_success, judge.score(videos(), WORDS).p_success, atol=1e-5
    )


def test_what_cannot_work_is_refused(llava, tmp_path):
    with pytest.raises(ConfigError, match=r"no \{instruction\}"):
        VlmJudgeConfig(prompt="Is it done?")
    with pytest.raises(ConfigError, match="all the same"):
        VlmJudgeConfig(mode="score", temperature=0.0)
    with pytest.raises(ConfigError, match="no single tokens"):
        VlmJudge(*llava, VlmJudgeConfig(yes=("yes",), no=("yes",)))
    with pytest.raises(ValueError, match="expected uint8"):
        VlmJudge(*llava).score(videos().float(), WORDS)
    with pytest.raises(CheckpointError, match="no folder .*image-text-to-text model"):
        VlmJudge.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_model_with_code_of_its_own_is_refused_without_a_question(tmp_path, file, monkeypatch):
    def asked(*_):
        raise AssertionError("the user was asked")

    monkeypatch.setattr("builtins.input", asked)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / file).write_text('{"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}')
    (tmp_path / "modeling.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(CheckpointError, match="code of its own .auto_map., which is never run"):
        VlmJudge.from_pretrained(tmp_path)

"""Any judge from its folder: what kind it is shows in the files that `save_pretrained` wrote.

Example::

    judge = load_judge("runs/judge")                                  # learned, latent, open_clip, VLM, endpoint, ...
    judge = load_judge("runs/latent_judge", tokenizer=world_model.tokenizer)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError, ConfigError
from worldgym.utils.files import read_json
from worldgym.utils.folders import settle


def judge_keys(pairs: Sequence[str]) -> dict[str, str]:
    """`URL=VARIABLE` of the command line as `keys` of `load_judge`: which variable holds the key of which address.

    Raises:
        ConfigError: another form, an address twice, or a variable that is not set.
    """
    keys: dict[str, str] = {}
    for pair in pairs:
        url, _, name = pair.rpartition("=")
        if not re.fullmatch(r"https?://[^\s/]\S*", url) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(
                "a judge's key is given as URL=VARIABLE, the address and the name of an environment variable (never "
                "the key itself); type --judge-keys http://localhost:8000/v1=MY_KEY"
            )
        if keys.setdefault(url, name) != name:
            raise ConfigError(f"{url} has keys of two variables; name one")
        if not os.environ.get(name):
            # The name is not repeated: it may be a key, typed by mistake.
            raise ConfigError(f"the variable named for {url} is not set; type export NAME=... and {url}=NAME")
    return keys


def load_judge(
    path: str | Path,
    *,
    tokenizer: Any | None = None,
    cache: str | Path | None = None,
    keys: Mapping[str, str] | None = None,
) -> Any:
    """The judge in folder `path`.

    Args:
        path: written by some judge's `save_pretrained`.
        tokenizer: of the world model whose latents or frames will be judged; a `LatentJudge` is attached to it.
        cache: folder of answers of a judge behind an endpoint.
        keys: by an endpoint's address, the environment variable that holds its key; see `HttpJudge.from_pretrained`.

    Raises:
        CheckpointError: no judge there, or a damaged one.
        DependencyError: it needs a package that is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder}; give one written by a judge's save_pretrained, or a name such as bundled"
        )
    settle(folder)
    loading: dict[str, Any] = {"tokenizer": tokenizer, "cache": cache, "keys": keys}
    if (folder / "calibrated.json").is_file():
        from rewards.calibrated import CalibratedJudge

        return CalibratedJudge.from_pretrained(folder, **loading)
    if (folder / "composed.json").is_file():
        from rewards.compose import ComposedJudge

        return ComposedJudge.from_pretrained(folder, **loading)
    if (folder / "open_clip_config.json").is_file():
        from rewards.open_clip import OpenClipJudge

        return OpenClipJudge.from_pretrained(folder)
    if (folder / "references.safetensors").is_file():
        from rewards.reference import ReferenceJudge

        return ReferenceJudge.from_pretrained(folder)
    remedy = "Give a folder written by a judge's save_pretrained, or a name such as bundled"
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"there is no judge in {folder}. {remedy}")
    facts = read_json(folder / "config.json", remedy)
    if not isinstance(facts, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} holds a {type(facts).__name__}, not settings. {remedy}"
        )
    if "url" in facts:
        from rewards.http import HttpJudge

        return HttpJudge.from_pretrained(folder, cache, keys)
    if "model_type" in facts:
        from rewards.vlm import VlmJudge

        return VlmJudge.from_pretrained(folder)
    if "grid" in facts:
        from rewards.latent import LatentJudge

        judge = LatentJudge.from_pretrained(str(folder))
        return judge if tokenizer is None else judge.attach(tokenizer)
    from rewards.learned import LearnedJudge

    return LearnedJudge.from_pretrained(str(folder))

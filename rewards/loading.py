"""Any judge from its folder: its type is in `config.json`, see `worldgym.registry.JUDGES`.

A type's `from_pretrained(folder)` may name `tokenizer`, `cache` and `keys`; it is given those that it names.

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

from worldgym.errors import ConfigError
from worldgym.registry import JUDGES


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
    """The judge in folder `path`, of any registered type.

    Args:
        path: written by the `save_pretrained` of a judge whose type `worldgym list` shows.
        tokenizer: of the world model whose latents or frames will be judged; a `LatentJudge` is attached to it.
        cache: folder of answers of a judge behind an endpoint.
        keys: by an endpoint's address, the environment variable that holds its key; see `HttpJudge.from_pretrained`.

    Raises:
        CheckpointError: no judge there, or a damaged one.
        ConfigError: its type is unknown here; lists what is known.
        DependencyError: it needs a package that is not installed.
    """
    return JUDGES.load(path, offered={"tokenizer": tokenizer, "cache": cache, "keys": keys})

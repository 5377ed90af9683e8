"""Load a judge of any type from its folder. `config.json` stores the type, see `worldgym.registry.JUDGES`.

The `from_pretrained(folder)` of a judge class may have the parameters `tokenizer`, `cache` and `keys`; only those it
has are passed.

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
    """Parse `URL=VARIABLE` pairs of the command line into `keys` of `load_judge`: a dict of variable names by address.

    Raises:
        ConfigError: a pair of another form, an address with two variables, or a variable that is not set.
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
            raise ConfigError(f"{url} is given two different variables; expected one. Remove one of the two pairs")
        if not os.environ.get(name):
            # The message does not repeat the name, which may be a key typed by mistake.
            raise ConfigError(
                f"the environment variable given for {url} is not set; type export NAME=... and {url}=NAME"
            )
    return keys


def load_judge(
    path: str | Path,
    *,
    tokenizer: Any | None = None,
    cache: str | Path | None = None,
    keys: Mapping[str, str] | None = None,
) -> Any:
    """Load the judge in folder `path`, of any registered type.

    Args:
        path: folder written by `save_pretrained` of a judge; `worldgym list` shows the known types.
        tokenizer: tokenizer of the world model whose latents or frames are judged; a `LatentJudge` is attached to it.
        cache: folder in which a judge behind an endpoint caches its answers.
        keys: endpoint address to the environment variable that holds its key; see `HttpJudge.from_pretrained`.

    Raises:
        CheckpointError: the folder holds no judge, or a damaged one.
        ConfigError: the type is unknown; the message lists the known ones.
        DependencyError: the judge needs a package that is not installed.
    """
    return JUDGES.load(path, offered={"tokenizer": tokenizer, "cache": cache, "keys": keys})

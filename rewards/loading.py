"""Any judge from its folder: what kind it is shows in the files that `save_pretrained` wrote.

Example::

    judge = load_judge("runs/judge")                                  # learned, latent, open_clip, VLM, endpoint, ...
    judge = load_judge("runs/latent_judge", tokenizer=world_model.tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError
from worldgym.utils.files import read_json
from worldgym.utils.folders import settle


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

"""Any judge from its folder: what kind it is shows in the files that `save_pretrained` wrote.

Example::

    judge = load_judge("runs/judge")                                  # learned, latent, open_clip, VLM, endpoint, ...
    judge = load_judge("runs/latent_judge", tokenizer=world_model.tokenizer)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldgym.errors import CheckpointError


def load_judge(path: str | Path, *, tokenizer: Any | None = None, cache: str | Path | None = None) -> Any:
    """The judge in folder `path`.

    Args:
        path: written by some judge's `save_pretrained`.
        tokenizer: of the world model whose latents or frames will be judged; a `LatentJudge` is attached to it.
        cache: folder of answers of a judge behind an endpoint.

    Raises:
        CheckpointError: no judge there, or a damaged one.
        DependencyError: it needs a package that is not installed.
    """
    folder = Path(path)
    loading = {"tokenizer": tokenizer, "cache": cache}
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
    try:
        facts = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no judge in {folder} ({error}); give a folder written by a judge's save_pretrained, or bundled"
        ) from error
    if "url" in facts:
        from rewards.http import HttpJudge

        return HttpJudge.from_pretrained(folder, cache)
    if "model_type" in facts:
        from rewards.vlm import VlmJudge

        return VlmJudge.from_pretrained(folder)
    if "grid" in facts:
        from rewards.latent import LatentJudge

        judge = LatentJudge.from_pretrained(str(folder))
        return judge if tokenizer is None else judge.attach(tokenizer)
    from rewards.learned import LearnedJudge

    return LearnedJudge.from_pretrained(str(folder))

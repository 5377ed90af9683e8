"""Reading a local diffusers pipeline folder: transformer, VAE and the shift of its scheduler.

Only safetensors files in that folder are read. Nothing is downloaded, and no code of the folder runs.

Example::

    config, parts = read_pipeline("models/Wan2.2-TI2V-5B-Diffusers")
    model = DiffusersWorldModel(config.for_data(states, specs), parts)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from worldgym.errors import UNBUILDABLE, CheckpointError, ConfigError
from worldgym.models.backbones.config import CLASS, VAE, BackboneConfig, check_transformer, check_vae
from worldgym.utils.files import read_json
from worldgym.utils.optional import require

logger = logging.getLogger(__name__)
LAYOUT = "expected a pipeline folder of diffusers: transformer/ and vae/, each with config.json and safetensors files"


def read_pipeline(folder: Path | str, dtype: str = "bfloat16") -> tuple[BackboneConfig, tuple[Any, Any]]:
    """Config, and the transformer and the VAE with their weights.

    Args:
        folder: local folder that `DiffusionPipeline.save_pretrained` wrote, or a download of one. Text encoders and
            other parts in it are not read.
        dtype: precision of the weights, `float32` or `bfloat16`.

    Raises:
        CheckpointError: no such folder, missing or damaged files, or weights that do not fit the settings.
        ConfigError: a transformer or a VAE of another class or shape.
    """
    folder = Path(folder).expanduser()
    settings = [_settings(folder / name) for name in ("transformer", "vae")]
    check_transformer(settings[0])
    check_vae({CLASS: None, **settings[1]})
    full = dict(transformer=settings[0], vae=settings[1], dtype=dtype, attention="full", **_sampling(folder))
    size = BackboneConfig().image_size
    learned = BackboneConfig(**full, image_size=_rounded(settings, size))
    require("diffusers")
    import diffusers

    parts = []
    for kind, name in ((settings[0][CLASS], "transformer"), (VAE, "vae")):
        parts.append(_weights(getattr(diffusers, kind), folder / name, getattr(torch, dtype)))
    return learned, (parts[0], parts[1])


def _rounded(settings: list[dict[str, Any]], size: Any) -> int:
    """A size that the shape of the networks allows; `for_data` replaces it."""
    levels = len(settings[1].get("dim_mult", (1, 2, 4, 4))) - 1
    multiple = 2**levels * (settings[1].get("patch_size") or 1) * settings[0].get("patch_size", (1, 2, 2))[1]
    return int(-(-int(size) // multiple) * multiple)


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"there is no {file}; {LAYOUT}")
    values = read_json(file, "restore it from its source")
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{file} holds a {type(values).__name__}, expected settings; restore it from its source"
        )
    kept = {key: value for key, value in values.items() if key == CLASS or not key.startswith("_")}
    if kept.get(CLASS) is None:
        raise CheckpointError(f"{file} names no {CLASS}; {LAYOUT}")
    return kept


def _sampling(folder: Path) -> dict[str, Any]:
    """Shift of the noise levels of the folder's scheduler, if it is one of flow matching."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    values = read_json(file, "restore it from its source")
    shift = values.get("flow_shift", values.get("shift"))
    if values.get("use_karras_sigmas") or shift is None:
        # Cosmos-Predict 2 has Karras' levels up to 80; its network is one of flow matching at t = sigma / (1 + sigma)
        logger.info("%s has no flow levels; the default shift %s is used", file, BackboneConfig.shift)
        return {}
    return {"shift": float(shift)}


def _weights(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"there is no safetensors file in {folder}; {LAYOUT}. Files of pickle are not read"
        )
    try:
        model, report = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    except (*UNBUILDABLE, OSError) as error:
        raise CheckpointError(
            f"the weights in {folder} can't be loaded as a {kind.__name__}: {error}"
        ) from error
    # diffusers gives missing weights random values and only logs it
    wrong = {
        name: list(report.get(name, ())) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        shown = "; ".join(f"{len(v)} {k.replace('_', ' ')}, e.g. {v[0]}" for k, v in wrong.items() if v)
        raise CheckpointError(
            f"the weights in {folder} are of another architecture than its config.json: {shown}. Restore the folder "
            "from its source"
        )
    return model


def pipeline_parts(model: Any) -> tuple[Any, Any]:
    """Transformer and VAE of a `DiffusersWorldModel`.

    Raises:
        ConfigError: a world model of another type.
    """
    if not hasattr(model, "network") or not hasattr(model, "vae"):
        raise ConfigError(f"a {type(model).__name__} has no transformer and VAE of diffusers")
    return model.network.transformer, model.vae.autoencoder

"""`from_pretrained` and `save_pretrained` for small models: `config.json` + `model.safetensors`, without pickle.

The class extends the mixin of huggingface_hub. Saving replaces config and weights together and writes a manifest of
checksums. Loading verifies the manifest, requires finite weights, checks the types of the config, and reports a missing
file by name. `config.json` also stores the `type` under which the class is registered (`worldgym.registry`). A path
is a local folder. Only names with the prefix `hf:` are loaded from the hub, so a mistyped path fails at once.

Example::

    class Judge(nn.Module, HubModel, coders={JudgeConfig: (asdict, JudgeConfig.from_dict)}):
        def __init__(self, config: JudgeConfig) -> None: ...
    Judge.from_pretrained("runs/judge")
    Judge.from_pretrained("hf:someone/judge")   # from the hub
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from typing_extensions import Self

from worldgym.errors import UNBUILDABLE, CheckpointError
from worldgym.registry import TYPE, registered_name
from worldgym.utils.files import read_json
from worldgym.utils.folders import save_folder, verify_folder
from worldgym.utils.tensors import load_tensors, save_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB = "hf:"
REMEDY = "give a folder that save_pretrained() wrote, or restore it from a copy"


Coders = dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]]


class HubModel(PyTorchModelHubMixin):
    """Mixin of an `nn.Module` whose `__init__` takes one frozen dataclass (or its dict) named `config`.

    A class whose checkpoints need more than config and weights names text files in `texts`, such as
    `{"tokenizer": "tokenizer.json"}`: they are saved from the attribute, and `__init__` takes their content.
    """

    texts: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, *, coders: Coders | None = None, **kwargs: Any) -> None:
        """Register the coders with the hub's mixin; decoders get the config without `type`, which is not a setting."""
        wrapped = {kind: (encode, _without_type(decode)) for kind, (encode, decode) in (coders or {}).items()}
        super().__init_subclass__(coders=wrapped or None, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:  # type: ignore[override]
        """Write `config.json` and `model.safetensors` into a folder; on any error the old files stay unchanged.

        Args:
            save_directory: folder for the two files and their manifest.
            **kwargs: with `push_to_hub=True`, the arguments of `push_to_hub`.
        """
        name = registered_name(self)
        with save_folder(save_directory) as folder:
            save_tensors(folder / WEIGHTS, self.state_dict(), metadata={"format": "pt"})  # type: ignore[attr-defined]
            config = {**_settings(self.config), **({TYPE: name} if name else {})}  # type: ignore[attr-defined]
            (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            for name, file in self.texts.items():
                (folder / file).write_text(getattr(self, name), encoding="utf-8")
        if not kwargs.pop("push_to_hub", False):
            return None
        return str(self.push_to_hub(kwargs.pop("repo_id", None) or Path(save_directory).name, **kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load from a folder, in evaluation mode; `hf:OWNER/NAME` loads from a hub repository instead.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights are not finite or have other shapes.
        """
        name = str(pretrained_model_name_or_path)
        if name.startswith(HUB):
            return super().from_pretrained(name.removeprefix(HUB), **kwargs)
        folder = verify_folder(name, (CONFIG, WEIGHTS, *cls.texts.values()), REMEDY)
        texts = {key: (folder / file).read_text(encoding="utf-8") for key, file in cls.texts.items()}
        config = read_json(folder / CONFIG, REMEDY)
        found = load_tensors(folder / WEIGHTS)
        if isinstance(config, dict):
            refuse_other_type(config.pop(TYPE, None), cls, folder)
        try:
            model = cls(config, **texts)
            # Every parameter must be in the file. A buffer that an older version did not save keeps its initial value.
            buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}  # type: ignore[attr-defined]
            model.load_state_dict({**buffers, **found})  # type: ignore[attr-defined]
        except UNBUILDABLE as error:
            raise CheckpointError(
                f"the checkpoint in {folder} is damaged or was made for another model: {error}"
            ) from error
        if device := kwargs.get("map_location"):
            model.to(torch.device(device))  # type: ignore[attr-defined]
        model.eval()  # type: ignore[attr-defined]
        return model

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load from the hub with the `type` checked and removed from the config."""
        if isinstance(config := kwargs.get("config"), Mapping):
            refuse_other_type(config.get(TYPE), cls, str(kwargs.get("model_id")))
            kwargs["config"] = {key: value for key, value in config.items() if key != TYPE}
        return super()._from_pretrained(**kwargs)


def refuse_other_type(written: Any, cls: type, folder: Path | str) -> None:
    """Raise a CheckpointError if the type `written` in `config.json` is the registered name of another class."""
    own = registered_name(cls)
    if written is not None and own is not None and written != own:
        raise CheckpointError(
            f"{folder} holds a model of type {written!r}, but {cls.__name__} loads type {own!r}; load it by its type, "
            "with load_judge, load_policy or load_world_model"
        )


def _settings(config: Any) -> dict[str, Any]:
    """All settings of a config, without those of its `LATER` that have the value listed there."""
    later = getattr(config, "LATER", {})
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in later or v != later[k]}


def _without_type(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(values: Any) -> Any:
        if isinstance(values, Mapping):
            values = {key: value for key, value in values.items() if key != TYPE}
        return decode(values)

    return read

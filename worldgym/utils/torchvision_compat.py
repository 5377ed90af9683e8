"""Keeps a torchvision that was built for another torch from breaking transformers, diffusers and open_clip.

PyPI's torchvision for x86_64 is a CUDA build; beside a CPU torch its compiled part can't load, and importing it
fails with `operator torchvision::nms does not exist`. Everything that imports torchvision merely because it is
installed then fails too, hiding the cause. Declaring the two operators that are registered unconditionally is enough
for all of torchvision but `nms` itself. A matching pair never enters that branch.

Example::

    from worldgym.utils.torchvision_compat import repair_torchvision
    repair_torchvision()
    import open_clip
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import Any

logger = logging.getLogger(__name__)

_library: Any = None  # the declarations vanish with the object, so it lives as long as the process


def repair_torchvision() -> bool:
    """Make `import torchvision` work; return True when a repair was needed."""
    global _library
    if (
        _library is not None
        or "torchvision" in sys.modules
        or importlib.util.find_spec("torchvision") is None
    ):
        return False
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    logger.warning("torchvision was built for another torch; it works here, except for torchvision.ops.nms")
    return True

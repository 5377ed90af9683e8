"""Makes torchvision importable when it was built for another torch, for transformers, diffusers and open_clip.

PyPI's torchvision for x86_64 is a CUDA build. With a CPU build of torch its compiled part cannot be loaded, and the
import fails with `operator torchvision::nms does not exist`. Packages that import torchvision only because it is
installed then fail too. Declaring the two operators that torchvision registers unconditionally makes all of
torchvision work, except `nms` itself. Nothing is changed if torch and torchvision match.

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

_library: Any = None  # kept for the whole process, because the declarations are removed with the object


def repair_torchvision() -> bool:
    """Make `import torchvision` work; returns True if a repair was needed."""
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
    logger.warning("torchvision was built for another torch; all of it works except torchvision.ops.nms")
    return True

"""A device that there is not: tensors on it are kept on the CPU, but mixing them with the CPU's is an error.

`pretended_device()` is a mode in which tensors can be put on `DEVICE`. The values are computed by the CPU; what CUDA
refuses is refused: operands on two devices (numbers of no dimension excepted), indices on the device for a tensor on
the CPU, a generator of another device than what is drawn, `numpy()` of what is not on the CPU. So a path that runs
here moves all its tensors to the device of the module that uses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy")  # torch computes gradients of this kind of device in the calling thread
CPU = torch.device("cpu")
BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::set_")
INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


class Pretended(torch.Tensor):
    """A tensor that says it is on `DEVICE`."""

    inside: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(),
            dtype=inside.dtype, layout=inside.layout, device=DEVICE,
        )  # fmt: skip
        made.inside = inside
        return made

    def __repr__(self, **how: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.inside!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on tensors of both kinds, with the rules of CUDA."""
    name = operation._schema.name
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Pretended)]
    asked = kwargs.get("device")
    if there and name not in BETWEEN:
        refuse_mixed(name, args, [x for x in tensors if not isinstance(x, Pretended)])
    target = torch.device(asked) if asked is not None else (DEVICE if there else CPU)
    if name == "aten::copy_":
        target = DEVICE if isinstance(args[0], Pretended) else CPU
    generator = kwargs.get("generator")
    if generator is not None and target != generator.device:
        raise RuntimeError(f"{name}: expected a generator on {target}, got one on {generator.device}")
    plain, options = tree_map_only(Pretended, lambda x: x.inside, (args, kwargs))
    if asked is not None:
        options = {**options, "device": CPU}
    answer = operation(*plain, **options)
    if name == "aten::_to_copy" and target == DEVICE and not there:
        answer = answer.clone() if answer is plain[0] else answer
    known = {id(x.inside): x for x in there}  # what was changed in place is returned as the same object

    def wrap(x: torch.Tensor) -> torch.Tensor:
        if id(x) in known:
            return known[id(x)]
        return Pretended(x) if target == DEVICE else x

    return tree_map_only(torch.Tensor, wrap, answer)


def refuse_mixed(name: str, args: Any, here: list[torch.Tensor]) -> None:
    """Raise a RuntimeError for operands on the CPU beside others on `DEVICE`, as CUDA does."""
    if name in INDEXING:
        if not isinstance(args[0], Pretended):
            raise RuntimeError(f"{name}: indices or values on {DEVICE}, the indexed tensor on cpu")
        here = [x for x in here if not any(x is index for index in args[1])]
    if wrong := [tuple(x.shape) for x in here if x.dim()]:
        raise RuntimeError(f"{name}: expected all tensors to be on {DEVICE}, found on cpu those of shapes {wrong}")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Tensors made of Python's and numpy's data: torch moves them below the level at which the other mode sees it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.tolist and isinstance(args[0], Pretended):
            return args[0].inside.tolist()  # CUDA's tensors have it, subclasses do not
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            if device == DEVICE or isinstance(args[0], Pretended):
                made = args[0] if isinstance(args[0], torch.Tensor) else function(*args, **kwargs)
                return made.to(device=device, dtype=kwargs.get("dtype"))
            kwargs["device"] = device
        return function(*args, **kwargs)


@contextlib.contextmanager
def pretended_device() -> Iterator[None]:
    """While it is on, `DEVICE` can be used."""
    with _FromData(), _Operations():
        yield


real_autocast = torch.autocast


def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """`torch.autocast`, which knows no pretended device: there everything stays float32."""
    if device_type == DEVICE.type:
        return contextlib.nullcontext()
    return real_autocast(device_type, *args, **kwargs)

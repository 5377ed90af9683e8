"""Counts memory and operations of a piece of code without computing anything.

In `on_meta()` new tensors are torch's fake tensors: tensors of the `meta` device that say they are on the CPU. They
have a shape and no values, so a model of any size fits, and the real training code runs on them. (Plain meta tensors
do not enter `torch.autocast`, which then would not change precision.) Code that asks for a value gets a fixed answer:
True, 1.0, the number of elements for a count of those that are true, or a large number.

`Live` follows every storage that operations allocate, until it is freed, and keeps the largest sum. It counts tensors;
the scratch memory inside of a kernel and the waste of an allocator are not in it.

Example::

    with on_meta():
        model = Model()
        with Live(model.parameters()) as live, FlopCounterMode(display=False) as flops:
            model.loss(batch).backward()
    live.peak, flops.get_total_flops()
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

MANY = 2**20
"""Answer to a question for a whole number, such as how many frames of a batch are real."""


class _Answers(TorchFunctionMode):
    """Answers what cannot be known without values; other functions run as they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, name = kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor):
            if name in _SCALARS:
                return _scalar(first, name)
            if name == "tolist":
                return _list(list(first.shape), _scalar(first, "item"))
            if name == "numpy":
                return np.zeros(tuple(first.shape), str(first.dtype).removeprefix("torch."))
            if name == "split" and isinstance(args[1], list) and MANY in args[1]:
                return torch.chunk(first, len(args[1]))  # by counts that are not known: evenly
            if name == "repeat_interleave":
                return _repeated(first, *args[1:], **given)
            if name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
                return first.flatten(0, args[1].ndim - 1)  # as if every element were chosen
        out = func(*args, **given)
        if func is torch.tensor and isinstance(first, (list, tuple)):
            out.counts = first  # numbers of repetitions, which decide a shape
        if name == "sum" and isinstance(first, Tensor) and first.dtype == torch.bool:
            out.total = first.numel()  # as if all were true
        return out


_SCALARS = ("item", "__bool__", "__int__", "__float__", "__index__")


def _scalar(value: Tensor, name: str) -> Any:
    if name == "__bool__" or value.dtype == torch.bool:
        return True
    if name == "__float__" or (name == "item" and value.is_floating_point()):
        return 1.0
    return getattr(value, "total", MANY)


def _repeated(x: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """`x.repeat_interleave(repeats, dim)`."""
    x, axis = (x.flatten(), 0) if dim is None else (x, dim % x.ndim)
    if isinstance(repeats, int):
        size = [-1] * (x.ndim + 1)
        size[axis + 1] = repeats
        return x.unsqueeze(axis + 1).expand(size).flatten(axis, axis + 1)
    shape = list(x.shape)
    shape[axis] = sum(repeats.counts)
    return x.new_empty(shape)


def _list(shape: list[int], value: Any) -> Any:
    return [_list(shape[1:], value) for _ in range(shape[0])] if shape else value


def _set_data(tensor: Tensor, other: Tensor) -> None:
    """Replaces `torch.utils.swap_tensors`, by which `module.to(dtype)` refuses tensors that others refer to weakly."""
    tensor.data = other.data


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Make tensors without values in this block; see the module docstring."""
    threads = torch.get_num_threads()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)  # the modes are those of this thread
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(),
            FakeTensorMode(allow_non_fake_inputs=True),
            _Answers(),
            mock.patch.object(torch.utils, "swap_tensors", _set_data),
        ):
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fast)


class Live(TorchDispatchMode):
    """Bytes of the storages that are alive while the mode is on.

    Args:
        before: tensors that exist already and count.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in before:
            self._follow(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return

        def freed(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def saved_bytes(work: Callable[[], Tensor], excluded: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `work`, each storage once.

    Args:
        work: computes a loss.
        excluded: tensors that exist anyway, such as weights and inputs.
    """
    known = {tensor.untyped_storage()._cdata for tensor in excluded}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = work()
        total = sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in known)
    del loss
    return int(total)


def flops_of(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work`: matrix products, convolutions and attention, two for a multiply-add."""
    kernels = torch.ops.aten
    more = {
        kernels._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        work()
    return int(counter.get_total_flops())


def _attention_flops(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward_flops(
    grad: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once."""
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def weights_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]

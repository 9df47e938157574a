"""A stand-in for a CUDA device on machines without one: its tensors say ``cuda:0``, and what they do is written down.

The numbers of a stand-in tensor lie on the processor (or nowhere, on ``meta``, where only shapes matter), so that the
CUDA branches of the suite run for real, with the suite's own models, and their results can be compared. As on a device,
tensors of both sides do not mix, NumPy cannot read them, and each copy and each wait for a number is seen.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

MEMORY = 80 * 2**30
DEVICE = torch.device("cuda", 0)
_FREE = ("aten.detach", "aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.lift_fresh")
"""Operations that start no kernel, beside views."""
_WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.unique_consecutive")


@dataclass
class Seen:
    """What ran on the device.

    Attributes:
        operations: Names in their order, views included.
        kernels: How many of them were more than a view.
        copies: Copies between host and device, by direction.
        waits: Numbers that the host waited for.
        stalls: Other waits for all that was sent: events of the newest work, copies from memory that is not pinned.
    """

    operations: list[str] = field(default_factory=list)
    kernels: int = 0
    copies: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    stalls: int = 0

    @property
    def state(self) -> tuple[int, int, int, int]:
        """Operations, kernels, copies and waits so far."""
        return len(self.operations), self.kernels, sum(self.copies.values()), self.waits


class DeviceTensor(torch.Tensor):
    """A tensor that says it lies on CUDA; ``inner`` holds its numbers."""

    inner: torch.Tensor
    owner: StandIn
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, owner: StandIn) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="cpu", requires_grad=False,
        )
        made.inner, made.owner = inner, owner
        return made

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["inner"], self.owner

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], owner: StandIn, *args: Any) -> DeviceTensor:
        return DeviceTensor(inner["inner"], owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made: torch.Tensor = DeviceTensor(self.inner.clone(), self.owner)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        owner = next(one.owner for one in _leaves((args, kwargs)) if isinstance(one, DeviceTensor))
        return owner.execute(func, args, kwargs or {})


for _name, _value in {"device": DEVICE, "is_cuda": True, "is_cpu": False}.items():
    setattr(DeviceTensor, _name, property(lambda self, value=_value: value))


class StandIn:
    """The device.

    Args:
        inner: ``cpu`` computes; ``meta`` only follows shapes.
        capability: Compute capability that it claims.
    """

    def __init__(self, inner: str = "cpu", capability: tuple[int, int] = (9, 0)) -> None:
        self.inner, self.capability, self.seen = inner, capability, Seen()

    @contextlib.contextmanager
    def attached(self) -> Iterator[StandIn]:
        """The device is there, in this thread and in the threads of pools."""
        standin = self

        class Pool(concurrent.futures.ThreadPoolExecutor):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                def there() -> Any:
                    with _Functions(standin):
                        return fn(*args, **kwargs)

                return super().submit(there)

        class Autocast(torch.autocast):
            def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
                super().__init__("cpu", *args, **kwargs)

        known = torch.is_autocast_enabled

        class Event:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.at = -1

            def record(self, *args: Any) -> None:
                self.at = standin.seen.kernels

            def synchronize(self) -> None:
                standin.seen.stalls += self.at == standin.seen.kernels

            def query(self) -> bool:
                return True

        properties = SimpleNamespace(
            name="Stand-in", total_memory=MEMORY, major=self.capability[0], minor=self.capability[1],
            multi_processor_count=1,
        )
        replaced: dict[str, Any] = {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "set_device": lambda *args: None, "get_device_capability": lambda *args: self.capability,
            "get_device_name": lambda *args: "Stand-in", "get_device_properties": lambda *args: properties,
            "mem_get_info": lambda *args: (MEMORY // 2, MEMORY), "empty_cache": lambda: None,
            "synchronize": lambda *args: None, "max_memory_allocated": lambda *args: MEMORY // 4,
            "memory_reserved": lambda *args: MEMORY // 8,
            "memory_allocated": lambda *args: MEMORY // 8, "reset_peak_memory_stats": lambda *args: None,
            "Event": Event, "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
            "get_rng_state": lambda *args: torch.get_rng_state(), "set_rng_state": lambda *args: None,
            "device": lambda *args: contextlib.nullcontext(),
            "is_bf16_supported": lambda *args: self.capability >= (8, 0), "_lazy_init": lambda: None,
        }
        with contextlib.ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
            stack.enter_context(mock.patch.object(concurrent.futures, "ThreadPoolExecutor", Pool))
            stack.enter_context(mock.patch.object(torch, "autocast", Autocast))
            stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", lambda *args: known("cpu")))
            stack.enter_context(_Functions(self))
            yield self

    def put(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of a host tensor on the device."""
        if isinstance(value, DeviceTensor):
            return value
        self.seen.copies["to device"] += 1
        made: torch.Tensor = DeviceTensor(value.detach().to(self.inner, copy=True), self)
        if value.requires_grad:
            made.requires_grad_()
        return made

    def fetch(self, value: torch.Tensor) -> torch.Tensor:
        """A copy on the host."""
        if not isinstance(value, DeviceTensor):
            return value
        self.seen.copies["to host"] += 1
        return _Fetched.apply(value) if value.requires_grad else self.on_host(value)

    def on_host(self, value: DeviceTensor) -> torch.Tensor:
        """The numbers; zeros where there are none."""
        if self.inner == "meta":
            return torch.zeros(value.shape, dtype=value.dtype)
        return value.inner.detach().clone()

    def execute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation on tensors of the device."""
        name = str(func.overloadpacket)
        host = [one for one in _leaves((args, kwargs)) if isinstance(one, torch.Tensor) and not _here(one)]
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
            if name == "aten.copy_" and host:
                return self._across(*args)
            if any(one.dim() for one in host):
                raise RuntimeError(f"{name}: tensors of the host and of the device")
            self._note(func, name)
            if name in ("aten.index", "aten.index_put", "aten.index_put_"):  # how many are true the host must know
                self.seen.waits += any(one is not None and one.dtype == torch.bool for one in args[1])
            own, options = _each(lambda x: x.inner if _here(x) else x, (list(args), dict(kwargs)))
            if options.get("device") is not None:
                options["device"] = self.inner
            if options.get("pin_memory"):
                options["pin_memory"] = False
            if name in _KERNELS:
                result: Any = _KERNELS[name](own, options)
            elif name == "aten._local_scalar_dense" and self.inner == "meta":
                return 1.0 if own[0].is_floating_point() else 1
            else:
                result = func(*own, **options)
                self.seen.kernels += name == "aten.to" and result is not own[0]  # a copy in another type, not a view
            if func._schema.is_mutable and func._schema.name.endswith("_") and _here(args[0]):
                return args[0]
            return _each(lambda x: DeviceTensor(x, self) if isinstance(x, torch.Tensor) else x, result)

    def _note(self, func: Any, name: str) -> None:
        self.seen.operations.append(name)
        self.seen.waits += name in _WAITS
        self.seen.kernels += not func.is_view and name not in _FREE

    def _across(self, into: torch.Tensor, value: torch.Tensor, *args: Any) -> torch.Tensor:
        if _here(into):
            self.seen.copies["to device"] += 1
            into.inner.copy_(value.to(self.inner))  # type: ignore[attr-defined]
        else:
            self.seen.copies["to host"] += 1
            into.copy_(self.on_host(value))  # type: ignore[arg-type]
        return into


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_each(change, one) for one in value]
    if isinstance(value, tuple):
        made = [_each(change, one) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, dict):
        return {name: _each(change, one) for name, one in value.items()}
    return change(value)


def _here(value: Any) -> bool:
    return isinstance(value, DeviceTensor)


class _Fetched(torch.autograd.Function):
    """The way to the host that gradients take back."""

    @staticmethod
    def forward(ctx: Any, value: DeviceTensor) -> torch.Tensor:
        ctx.owner = value.owner
        return value.owner.on_host(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = ctx.owner.put(gradients[0])
        return made


def _packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, scale: float) -> Any:
    """``(T, H, D)`` attention within each sequence by plain arithmetic."""
    if query.device.type == "meta":
        return torch.empty_like(query)
    pieces = []
    for start, end in itertools.pairwise(edges.tolist()):
        q, k, v = (one[start:end].transpose(0, 1).float() for one in (query, key, value))
        pieces.append(((q @ k.transpose(1, 2) * scale).softmax(-1) @ v).transpose(0, 1).to(query.dtype))
    return torch.cat(pieces)


def _gradients(given: torch.Tensor, three: Any, edges: torch.Tensor, scale: float) -> tuple[torch.Tensor, ...]:
    if given.device.type == "meta":
        return tuple(torch.empty_like(one) for one in three)
    with torch.enable_grad():
        leaves = [one.detach().clone().requires_grad_() for one in three]
        return torch.autograd.grad(_packed(*leaves, edges, scale), leaves, given)


def _flash(own: Any, options: Any) -> Any:
    """``torch_attn::_varlen_attn``: result, sums, random state."""
    query, scale = own[0], own[8]
    sums, state = query.new_empty(query.shape[1::-1], dtype=torch.float32), query.new_empty(2, dtype=torch.uint64)
    return _packed(*own[:4], scale), sums, state


def _flash_back(own: Any, options: Any) -> Any:
    given, query, key, value, _, _, edges = own[:7]
    scale = next(one for one in own[10:] if isinstance(one, float))
    return _gradients(given, (query, key, value), edges, scale)


def _efficient(own: Any, options: Any) -> Any:
    """``aten::_efficient_attention_forward`` of one row with edges."""
    three, edges = [one[0] for one in own[:3]], own[4]
    count = len(edges) - 1
    result = _packed(*three, edges, options["scale"])[None]
    sums = result.new_empty((count, result.shape[2], int(own[6])), dtype=torch.float32)
    seed, offset = (torch.empty((), dtype=torch.int64, device=result.device) for _ in range(2))
    return result, sums, seed, offset, own[6], own[7]


def _efficient_back(own: Any, options: Any) -> Any:
    given, *three = (one[0] for one in own[:4])
    gradients = _gradients(given, three, own[6], options["scale"])
    return (*(one[None] for one in gradients), torch.empty(0, device=given.device))


_KERNELS = {
    "torch_attn._varlen_attn": _flash, "torch_attn._varlen_attn_backward": _flash_back,
    "aten._efficient_attention_forward": _efficient, "aten._efficient_attention_backward": _efficient_back,
}
"""Attention kernels that processors lack."""


class _Functions(TorchFunctionMode):
    """Sends what names the device there: moves and new tensors."""

    def __init__(self, owner: StandIn) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.cuda, torch.Tensor.pin_memory):
            if name == "cpu":
                self.owner.seen.stalls += _here(args[0])
                return self.owner.fetch(args[0])
            if name == "numpy" and _here(args[0]):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if name == "cuda":
                return self.owner.put(args[0])
            if name == "pin_memory":
                return args[0]
        if func is torch.Tensor.tolist and _here(args[0]):
            self.owner.seen.waits += 1
            return self.owner.on_host(args[0]).tolist()
        if func is torch.Tensor.to:
            return self._to(*args, **options)
        device = options.get("device")
        if device is not None and torch.device(device).type == "cuda":
            made = func(*args, **{**options, "device": "cpu"})
            if _here(made):
                return made
            if name in ("tensor", "as_tensor", "asarray"):
                self.owner.seen.copies["to device"] += 1
                self.owner.seen.stalls += 1
            return _each(lambda x: self._new(x) if isinstance(x, torch.Tensor) and not _here(x) else x, made)
        if options.get("pin_memory"):
            options["pin_memory"] = False
        return func(*args, **options)

    def _new(self, value: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = DeviceTensor(value.detach().to(self.owner.inner), self.owner)
        return made.requires_grad_(value.requires_grad)

    def _to(self, value: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, _ = torch._C._nn._parse_to(
            *args, **{name: item for name, item in options.items() if name not in ("copy", "memory_format")}
        )
        rest = {"copy": True} if options.get("copy") and device is None else {}
        if device is not None:
            # The other way is not counted: torch groups gradients by the device of the wrapper, which is the host.
            self.owner.seen.stalls += device.type == "cuda" and not _here(value) and not options.get("non_blocking")
            value = self.owner.put(value) if device.type == "cuda" else self.owner.fetch(value)
        return value if dtype is None and not rest else value.to(dtype or value.dtype, **rest)

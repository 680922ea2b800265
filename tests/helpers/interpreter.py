"""Triton's interpreter, several times as fast: it works as ever, but leaves out what tests of kernels do not need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from triton.language import core
from triton.runtime import interpreter


def hasten() -> None:
    """Its language is made ready once for each module and launch, not in each call of a device function; sums and
    products are not computed a second time, in 64 bits, to see whether they overflow; and the types of tensors, on
    which most of its time goes, are made once."""
    ready: set[str] = set()
    launch, prepare = interpreter.GridExecutor.__call__, interpreter._patch_lang

    def launch_anew(self: Any, *arguments: Any, **options: Any) -> None:
        ready.clear()
        launch(self, *arguments, **options)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.fn.__module__ not in ready:
            prepare(self.fn)
            ready.add(self.fn.__module__)
        return self.rewrite()(*arguments, **options)

    interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__ = launch_anew, call
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    _keep_types()


def _keep_types() -> None:
    types: dict[tuple[object, ...], dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    in_numpy: dict[str, Any] = {}
    make_type, make_tensor, look_up = core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype

    def init_type(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
        key = element_ty.name, *(core._unwrap_if_constexpr(side) for side in shape)
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = self.__dict__
        self.__dict__ = types[key]

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors:
            make_tensor(self, handle, type)
            tensors[type.name] = {name: value for name, value in self.__dict__.items() if name != "handle"}
        self.__dict__.update(tensors[type.name], handle=handle)

    def numpy_type(tt_dtype: Any) -> Any:
        if tt_dtype.name not in in_numpy:
            in_numpy[tt_dtype.name] = look_up(tt_dtype)
        return in_numpy[tt_dtype.name]

    core.block_type.__init__, core.tensor.__init__ = init_type, init_tensor
    interpreter._get_np_dtype = numpy_type

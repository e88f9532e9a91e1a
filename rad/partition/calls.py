"""Calls of compiled programs in which nothing is silently left uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
from torch import _dynamo as dynamo
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

from rad.errors import UsageError


class Counting(Protocol):
    """A backend that counts the graphs that it has been given."""

    graphs: int


def strict(call: Callable[..., Any], backend: Counting | None = None) -> Callable[..., Any]:
    """The call, which raises refusals as they are, and one where torch would compile no more.

    Past `torch._dynamo.config.recompile_limit` sizes torch runs the program as it is, and all would
    be kept; so it would where `backend` has been given no graph. Under DistributedDataParallel
    graphs stay whole, as they were planned for.
    """

    @wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with dynamo.config.patch(fail_on_recompile_limit_hit=True, optimize_ddp=False):
                output = call(*args, **kwargs)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, UsageError):
                raise error.inner_exception from None
            raise
        except FailOnRecompileLimitHit as error:
            raise UsageError(
                f"the model was compiled for {dynamo.config.recompile_limit} sizes of its inputs, "
                "torch's limit: pad inputs to a few sizes, or raise "
                "torch._dynamo.config.recompile_limit"
            ) from error

        if backend is not None and not backend.graphs and torch.is_grad_enabled():
            raise UsageError(
                "torch has left the model uncompiled, so that all would be kept: leave out "
                "TORCH_COMPILE_DISABLE, torch.compiler.set_stance and torch.compiler.disable"
            )
        return output

    return run

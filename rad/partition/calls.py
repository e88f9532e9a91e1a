"""Calls of compiled programs in which nothing is silently left uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import _dynamo as dynamo
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

from rad.errors import UsageError


def strict(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, which raises refusals as they are, and one where torch would compile no more.

    Past `torch._dynamo.config.recompile_limit` sizes torch runs the program as it is, and all would
    be kept.
    """

    @wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with dynamo.config.patch(fail_on_recompile_limit_hit=True):
                return call(*args, **kwargs)
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

    return run

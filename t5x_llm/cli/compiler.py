"""Errors of the compiler that are about options the user gave it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from t5x_llm.core.errors import ConfigError


@contextlib.contextmanager
def options_named(options: dict[str, Any]) -> Iterator[None]:
    """Names ``Run.compiler_options`` where the compiler refuses one of them.

    Raises:
      ConfigError: the compiler's message is about an option.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        said = str(e).splitlines()[0]
        name = next((name for name in options if name in said), None)
        if name is None:
            raise
        raise ConfigError(
            f"Run.compiler_options[{name!r}]",
            options[name],
            "what this compiler takes for these devices",
            f"It says: {said[:300]} To compile without: --gin.Run.compiler_options={{}}",
        ) from e

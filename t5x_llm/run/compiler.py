"""Options the user gives the compiler, and its errors about them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError


def options_for(mesh: Mesh, options: dict[str, Any]) -> dict[str, Any] | None:
    """Returns ``Run.compiler_options`` for TPUs; None elsewhere, where no compiler knows them."""
    return options if options and mesh.devices.flat[0].platform == "tpu" else None


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

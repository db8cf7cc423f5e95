"""Versions and devices of a run, for its record."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import jax

_PACKAGES = ("t5x_llm", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(devices: Sequence[jax.Device] | None = None) -> dict[str, Any]:
    """Returns versions and devices as JSON, without host names, users or paths."""
    devices = list(jax.devices() if devices is None else devices)
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "packages": versions,
    }

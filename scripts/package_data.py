"""Build step of the wheel: ``configs/`` and ``data/`` go into it as ``t5x_llm/shipped/``.

pyproject.toml names it under [tool.setuptools.cmdclass]. The repository keeps one copy of these
files, at its top; ``t5x_llm.core.paths.SHIPPED`` finds them in a checkout and in a wheel.
"""

from __future__ import annotations

import os
import pathlib

from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = {"configs": (".gin",), "data": (".jsonl", ".json", ".md", ".txt")}


class BuildPy(build_py):
    """The usual command, and the shipped files after it; an editable install needs none of them."""

    def shipped(self) -> list[str]:
        """Returns the files' paths from the top of the repository, in order."""
        return [
            path.relative_to(ROOT).as_posix()
            for folder, kinds in KINDS.items()
            for path in sorted((ROOT / folder).rglob("*"))
            if path.suffix in kinds and path.is_file()
        ]

    def _target(self, path: str) -> str:
        return os.path.join(self.build_lib, "t5x_llm", "shipped", path)

    def run(self) -> None:
        """Builds the package, then copies the shipped files beside it."""
        super().run()
        for path in [] if self.editable_mode else self.shipped():
            target = self._target(path)
            self.mkpath(os.path.dirname(target))
            self.copy_file(os.fspath(ROOT / path), target)

    def get_source_files(self) -> list[str]:
        """Returns what an sdist holds; without these files and this step it builds no wheel."""
        return [*super().get_source_files(), *self.shipped(), "scripts/package_data.py"]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Returns all files that ``run`` writes."""
        mine = [] if self.editable_mode else [self._target(path) for path in self.shipped()]
        return [*super().get_outputs(include_bytecode), *mine]

"""The ledger: what a job asked a cloud for and may still hold, kept on disk until it is gone."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterable

from t5x_llm.core.errors import ConfigError

# Each field ends up in a command line, and a file on disk is not to be trusted with one.
_WORD = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,200}")


@dataclasses.dataclass(frozen=True, order=True)
class Holding:
    """Something that may exist in a cloud and cost money.

    Attributes:
      kind: 'queued-resource' or 'jobset'.
      name: of it.
      owner: Google Cloud project, or kubectl's context, '' for the current one.
      place: zone, or namespace.
    """

    kind: str
    name: str
    owner: str
    place: str

    def __str__(self) -> str:
        if self.kind == "jobset":
            context = f" of context {self.owner}" if self.owner else ""
            return f"JobSet {self.name} in namespace {self.place}{context}"
        return f"queued resource {self.name} in zone {self.place} of project {self.owner}"

    def delete_command(self) -> list[str]:
        """Returns the command that deletes it."""
        if self.kind == "jobset":
            context = [f"--context={self.owner}"] if self.owner else []
            words = [*context, f"--namespace={self.place}", "delete", "jobset", self.name]
            return ["kubectl", *words, "--ignore-not-found"]
        where = [f"--zone={self.place}", f"--project={self.owner}", "--force", "--quiet"]
        return ["gcloud", "compute", "tpus", "queued-resources", "delete", self.name, *where]


class Ledger:
    """Holdings of one job; every change is on disk before it returns.

    Args:
      name: of the job.
      owner: project or context; jobs of equal names in two of them are two jobs.

    Attributes:
      path: the file.
    """

    def __init__(self, name: str, owner: str):
        self.path = directory() / f"{re.sub(r'[^A-Za-z0-9.-]', '_', owner) or 'here'}.{name}.json"

    def holdings(self) -> list[Holding]:
        """Returns what may exist, in the order in which it was asked for.

        Raises:
          ConfigError: the file is damaged.
        """
        return _read(self.path)

    def add(self, holding: Holding) -> None:
        """Notes what is about to be asked for."""
        if holding not in (found := self.holdings()):
            self._write([*found, holding])

    def discard(self, holding: Holding) -> None:
        """Strikes out what is known to be gone."""
        if holding in (found := self.holdings()):
            self._write([h for h in found if h != holding])

    def _write(self, holdings: Iterable[Holding]) -> None:
        entries = [dataclasses.asdict(h) for h in holdings]
        try:
            if not entries:
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(f".{os.getpid()}.tmp")
            with beside.open("w", encoding="utf-8") as file:
                json.dump(entries, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as e:
            raise ConfigError(
                "XDG_STATE_HOME",
                str(self.path.parent),
                f"a directory that can be written ({e.strerror})",
                "What is asked of a cloud is noted there, so that it can be given back.",
            ) from e


def directory() -> pathlib.Path:
    """Returns where ledgers are: below XDG_STATE_HOME, ~/.local/state if that is not set."""
    home = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state"
    return pathlib.Path(home) / "t5x-llm/jobs"


def everything() -> list[Holding]:
    """Returns what all jobs submitted from this machine may hold.

    Raises:
      ConfigError: a ledger is damaged.
    """
    return [one for path in sorted(directory().glob("*.json")) for one in _read(path)]


def _read(path: pathlib.Path) -> list[Holding]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    try:
        found = [Holding(**entry) for entry in json.loads(text)]
        sound = all(h.kind in ("queued-resource", "jobset") and _sound(h) for h in found)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise ConfigError(
            "the ledger of a job",
            str(path),
            "a list of what the job holds",
            "Look for what it holds in the cloud's console, delete that, then this file.",
        )
    return found


def named(holdings: Iterable[Holding]) -> str:
    """Returns the lines that say what may remain and how to delete each."""
    return "\n".join(f"  {h}\n    delete it: {shlex.join(h.delete_command())}" for h in holdings)


def _sound(holding: Holding) -> bool:
    values = dataclasses.astuple(holding)[1:]
    optional = holding.kind == "jobset"
    return all(
        isinstance(v, str) and (bool(_WORD.fullmatch(v)) or (optional and v == "")) for v in values
    )

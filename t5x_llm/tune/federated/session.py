"""A federated training from its configuration to its end, in one process or in several."""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_llm import parallel
from t5x_llm.checkpoint import Checkpointer
from t5x_llm.config import to_dict
from t5x_llm.core.errors import ConfigError, DataError, Preempted
from t5x_llm.core.paths import check_writable, write_atomic
from t5x_llm.data.positions import DataState
from t5x_llm.nn.adapters import roots
from t5x_llm.run import base
from t5x_llm.run.adapters import OUT, check_adapter, export_adapter
from t5x_llm.run.assembled import Assembled, assemble
from t5x_llm.run.chat import begin_chat, check_chat, save_template
from t5x_llm.run.checks import check_start_from, check_start_tokenizer, check_tokenizer_size
from t5x_llm.run.config import OPERATIVE_CONFIG, Run
from t5x_llm.run.held import held
from t5x_llm.run.identity import MADE_FROM, check_opened, made_from
from t5x_llm.run.load import load
from t5x_llm.run.prepare import inputs_are_elsewhere, run_preparation
from t5x_llm.run.session import check_resume
from t5x_llm.run.start import imported, resumed_step, start_message
from t5x_llm.train.ahead import keep_compiled
from t5x_llm.train.environment import environment
from t5x_llm.train.hooks.lines import JsonLines
from t5x_llm.train.journal import JOURNAL, Journal
from t5x_llm.train.report import write_report
from t5x_llm.train.signals import Preemption, exit_together
from t5x_llm.train.state import TrainState, with_shardings
from t5x_llm.train.watchdog import Watchdog
from t5x_llm.tune.federated.averaging import Averager, Tree
from t5x_llm.tune.federated.exchange import Exchange
from t5x_llm.tune.federated.parties import Party, Trainee, open_party, party_run
from t5x_llm.tune.federated.rounds import RoundRecord, Rounds, Server

METRICS = "metrics.jsonl"


def train(run: Run, operative_config: str, resume: str = "auto") -> None:
    """Trains a run with ``Run.federated``; its directory holds what that of another run holds.

    In a group of several processes (``jax.distributed``) each process prepares, opens and trains on
    the data of its own parties alone.

    Args:
      run: the configuration.
      operative_config: gin text saved with the run.
      resume: as for ``run.session.train``.

    Raises:
      ConfigError: the run directory is not what ``resume`` asks for, or there are more processes
        than parties.
      Preempted: the run was asked to end, and is saved.
      SpikeError: a party's steps ended in numbers that are not finite.
    """
    distributed = parallel.initialize()
    directory = check_writable("Run.directory", run.directory)
    with held(directory, distributed):
        _train_held(run, operative_config, resume, directory)


def _train_held(run: Run, operative_config: str, resume: str, directory: epath.Path) -> None:
    keep_compiled(directory)
    check_start_from(run)
    check_chat(run)
    check_adapter(run)
    assert run.data.mixture is not None
    names = [source.name for source in run.data.mixture.sources]
    exchange = Exchange(len(names))
    found = resumed_step(run, resume == "anew")
    check_resume(run, resume, found)
    primary = exchange.server
    journals: list[Journal] = []

    def report(event: str, **fields: str) -> None:
        for journal in journals:
            journal.write(event, 0, **fields)

    with (
        Preemption(run.life.grace_seconds) as preemption,
        exit_together(lambda error: report("end", status=type(error).__name__)),
        Watchdog(
            run.life.watchdog_minutes, directory, lambda reason: report("stuck", reason=reason)
        ) as watchdog,
    ):
        watchdog.heartbeat("preparation of the data")
        if primary and found is not None:
            base.check_base(run)
        own = {i: party_run(run, i) for i in exchange.mine}
        missing = [str(i) for i, each in own.items() if not inputs_are_elsewhere(each.data)]
        if missing:
            run_preparation(operative_config, "t5x_llm.tune.federated.preparing", missing)
        parties = {i: _open(run, each, i, found) for i, each in own.items()}
        watchdog.heartbeat("import of the base")
        devices = jax.local_devices()
        assembled = assemble(run, parallel.make_mesh(run.mesh, devices))
        training = _Training(assembled, parties, exchange, names, directory)
        try:
            first = training.restore(found)
            if primary:
                write_atomic(directory / OPERATIVE_CONFIG, operative_config)
                save_template(run, parties[0].data.opened.tokenizer)
                if message := start_message(run, found):
                    print(message, file=sys.stderr)
            journals.append(Journal(directory / JOURNAL, primary=primary))
            training.rounds(first, journals[0], preemption, watchdog)
        finally:
            training.checkpointer.close()
    if primary:
        _finish(run, directory)


def _finish(run: Run, directory: epath.Path) -> None:
    """Exports the adapter, writes the report, and prints which command comes next."""
    lines = [f"Run directory: {run.directory}", f"  report        {write_report(directory)}"]
    if run.export.enabled and jax.process_count() > 1:
        lines.append(f"  to export     t5x-llm export {run.directory}")
    elif run.export.enabled:
        out = str(directory / OUT)
        try:
            said = f"{out} ({export_adapter(run, load(run.directory).params, out).summary()})"
        except ConfigError as e:  # what peft cannot load is trained all the same
            said = f"in the run alone: {e}"
        lines.append(f"  adapter       {said}")
    lines.append(f"Next: t5x-llm generate {run.directory} --prompt '...'")
    print("\n".join(lines), file=sys.stderr)


def _open(run: Run, own: Run, number: int, found: int | None) -> Party:
    """Opens the data of a party, and compares it with the checkpoint's."""
    party = open_party(own, number)
    check_tokenizer_size(run, party.data.opened.tokenizer)
    if found is None:
        check_start_tokenizer(run, party.data.opened.tokenizer)
        begin_chat(own, party.data.opened, 3 if number == 0 else 0)
    else:
        check_opened(run, party.data.opened)
    return party


class _Training:
    """State of a federated run: the server's adapter, and what a checkpoint keeps of it.

    Attributes:
      adapter: the average so far, NumPy arrays, the same in all processes.
      checkpointer: checkpoints of the run.
    """

    def __init__(
        self,
        assembled: Assembled,
        parties: dict[int, Party],
        exchange: Exchange,
        names: list[str],
        directory: epath.Path,
    ):
        run = self._run = assembled.run
        self._names, self._directory, self._exchange = names, directory, exchange
        start = base.begin(assembled, imported(assembled))
        self.adapter: Tree = jax.device_get(start.params[roots.ADAPTER])
        kept = assembled.task.saved(start.params)
        self._others = {k: jax.device_get(x) for k, x in kept.items() if k != roots.ADAPTER}
        mine = {
            i: {"tokens": party.tokens, MADE_FROM: made_from(party.data.opened)}
            for i, party in parties.items()
        }
        every = exchange.objects(mine)
        self._sizes = [each["tokens"] for each in every]
        self._made_from = _joined([each[MADE_FROM] for each in every]) | base.base_record(run)
        axes = assembled.task.logical_axes()[roots.ADAPTER]
        assert run.federated is not None
        server = Server(run.federated, Averager(self.adapter, axes), exchange, names, self._sizes)
        self._rounds = Rounds(Trainee(assembled, start), parties, server, exchange, names)
        self._everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())
        self.checkpointer = Checkpointer(directory / "checkpoints", run.checkpoint)

    def restore(self, found: int | None) -> int:
        """Restores the newest sound checkpoint; returns its step, 0 for a run that begins."""
        step = self.checkpointer.newest_sound() if found is not None else None
        if step is None:
            return 0
        state = self._state(0)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        abstract = with_shardings(abstract, jax.tree.map(lambda _: self._everywhere, abstract))
        saved, _ = self.checkpointer.restore(abstract, step)
        self.checkpointer.drop_after(step)
        self.adapter = jax.tree.map(_host, saved.params[roots.ADAPTER])
        return step

    def rounds(
        self, first: int, journal: Journal, preemption: Preemption, watchdog: Watchdog
    ) -> None:
        """Makes all rounds from step ``first`` on."""
        run, loop = self._run, self._run.loop
        assert run.federated is not None
        local, lines = run.federated.local_steps, JsonLines(self._directory / METRICS)
        journal.write("start", first, **self._facts())
        if self._exchange.server:
            lines.open(first)
            self._write(lines, {"kind": "start", "step": first} | self._facts())
            self._say(
                f"{len(self._names)} parties, {local} steps a round, from step {first} to "
                f"{loop.steps}; the first round compiles for a while."
            )
        begun, saved = time.perf_counter(), first
        for step in range(first, loop.steps, local):
            watchdog.heartbeat("a round")
            start = time.perf_counter()
            self.adapter, done = self._rounds.run(self.adapter, step, local, preemption.requested)
            seconds = time.perf_counter() - start
            last, left = done.step == loop.steps, loop.steps - done.step
            journal.write("round", done.step, **_journal_fields(done, seconds))
            if self._exchange.server:
                self._write(lines, _metrics_line(done, loop.batch_size, seconds))
                per = (time.perf_counter() - begun) / (done.step - first)
                self._say(_text(done, loop.steps, seconds, per * left))
            if last or _due(step, done.step, loop.eval_every):
                watchdog.heartbeat("evaluation")
                self._evaluate(lines, done.step)
            if last or done.leaving or _due(saved, done.step, run.checkpoint.every_steps):
                watchdog.heartbeat("save")
                self._save(done.step, journal)
                saved = done.step
            if done.leaving and not last:
                raise Preempted(
                    f"Asked to leave: saved at step {done.step}. The same command continues."
                )
        if self._exchange.server:
            lines.close()
        journal.write("end", loop.steps, status="finished")
        journal.close()

    def _evaluate(self, lines: JsonLines, step: int) -> None:
        results = self._rounds.evaluate(self.adapter)
        if not (results and self._exchange.server):
            return
        self._write(lines, {"kind": "eval", "step": step, "results": results})
        figures = ", ".join(
            f"{name} {each['bits_per_byte']:.3f} bits/byte"
            if "bits_per_byte" in each
            else f"{name} {each['loss']:.3f}"
            for name, each in results.items()
        )
        self._say(f"held out at step {step}: {figures}")

    def _save(self, step: int, journal: Journal) -> None:
        meta = {
            MADE_FROM: self._made_from,
            "step": step,
            "rewinds": 0,
            "data": DataState(step * self._run.loop.batch_size).to_json(),
            "config": {name: to_dict(value) for name, value in self._run.shared().items()},
            "hooks": {},
        }
        self.checkpointer.save(step, self._state(step), meta)
        self.checkpointer.wait()
        journal.write("save", step)

    def _state(self, step: int) -> TrainState:
        """Returns what a checkpoint holds, whole on every device of all processes."""
        params = self._others | {roots.ADAPTER: self.adapter}
        return jax.tree.map(self._replicated, TrainState(np.int32(step), params, ()))

    def _replicated(self, array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, self._everywhere, lambda i: array[i])

    def _facts(self) -> dict[str, Any]:
        tokens = dict(zip(self._names, self._sizes, strict=True))
        return {
            "federated": to_dict(self._run.federated),
            "parties": tokens,
            "environment": environment(jax.devices()),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _write(self, lines: JsonLines, line: dict[str, Any]) -> None:
        lines.write({"kind": line["kind"], "step": line["step"], "rewinds": 0} | line)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _host(array: jax.Array) -> np.ndarray:
    return np.asarray(array.addressable_data(0))


def _due(before: int, now: int, every: int) -> bool:
    """Returns True if a multiple of ``every`` was passed; never for 0."""
    return bool(every) and before // every < now // every


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins what the parties' data was made from.

    Raises:
      DataError: they have different tokenizers.
    """
    if len({record["tokenizer"] for record in records}) > 1:
        raise DataError("The parties prepared their data with different tokenizers.")
    sources = {name: each for record in records for name, each in record["sources"].items()}
    return records[0] | {"sources": sources}


def _journal_fields(done: RoundRecord, seconds: float) -> dict[str, Any]:
    return {
        "loss": {name: each.loss for name, each in done.parties.items()},
        "tokens": {name: each.tokens for name, each in done.parties.items()},
        "weights": done.weights,
        "dropped": done.dropped,
        "seconds": seconds,
    }


def _metrics_line(done: RoundRecord, rows: int, seconds: float) -> dict[str, Any]:
    every = done.parties.values()
    return {
        "kind": "train",
        "step": done.step,
        "examples": done.step * rows * len(done.parties),
        "tokens": done.tokens,
        "loss": done.loss,
        "loss_by_source": {name: each.loss for name, each in done.parties.items()},
        "learning_rate": max(each.learning_rate for each in every),
        "grad_norm": sum(each.grad_norm for each in every) / len(done.parties),
        "dropped": done.dropped,
        "tokens_per_second": done.tokens / seconds,
    }


def _text(done: RoundRecord, steps: int, seconds: float, left: float) -> str:
    parties = ", ".join(f"{name} {each.loss:.3f}" for name, each in done.parties.items())
    minutes, second = divmod(round(left), 60)
    return (
        f"step {done.step:>{len(str(steps))}}/{steps}  loss {done.loss:.3f} ({parties})  "
        f"dropped {done.dropped:.1%}  {done.tokens / seconds:,.0f} tok/s  "
        f"{minutes}:{second:02} left"
    )

"""A journal written by hand, with times that can be added up by hand; a disk that is full."""

import contextlib
import datetime
import json
import resource

BEGAN = datetime.datetime(2026, 11, 22, 10, 0, 0, tzinfo=datetime.UTC)


def line(second, event, step, life, account=None, **fields):
    """One line, ``second`` after the first process began."""
    time = BEGAN + datetime.timedelta(seconds=second)
    text = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    more = {} if account is None else {"account": account}
    return {"time": text, "event": event, "step": step, "life": life} | fields | more


SPIKE = dict(onset=138, kind="loss", reason="3 bad steps within 5, the first: loss 7.103")
FACTS = dict(steps=400, processes=1, devices="8 x cpu", mesh={"data": 2, "fsdp": 4})


def eventful():
    """Two rewinds, a kill, damage, a preemption; 330 seconds from first to last."""
    first = {"compile": 8.0}
    return [
        line(10, "start", 0, 1, {"total": 10.0}, resumed=False, **FACTS),
        line(40, "save", 50, 1, first | {"total": 40.0, "data": 0.5, "save": 1.5}, seconds=1.5),
        line(41, "saved", 50, 1),
        line(50, "skip", 70, 1, position=560, grad_norm=33.2),
        line(50, "peak", 70, 1, kind="gradient", reason="gradient norm 33.2, 9.1 x its level"),
        line(70, "save", 100, 1, first | {"total": 70.0, "data": 1.0, "save": 3.0}, seconds=1.5),
        line(71, "saved", 100, 1),
        line(
            *(90, "spike", 141, 1),
            **SPIKE,
            tokens_by_source={"en": 3000, "zh": 120},
            documents=[["en", "speeches.jsonl", 812], ["zh", "poems.jsonl", 5]],
        ),
        line(
            *(90, "rewind", 141, 1, first | {"total": 90.0, "data": 1.2, "save": 3.0}),
            **SPIKE,
            **dict(detected=141, to_step=50, skip=[400, 2800]),
        ),
        line(93, "restore", 50, 1, seconds=3.0),
        line(93, "alive", 50, 1, first | {"total": 93.0, "data": 1.2, "save": 3.0, "restore": 3.0}),
        line(
            *(120, "save", 100, 1),
            first | {"total": 120.0, "data": 1.2, "save": 4.5, "restore": 3.0},
            seconds=1.5,
        ),
        line(121, "saved", 100, 1),
        line(
            *(150, "save", 150, 1),
            first | {"total": 150.0, "data": 1.2, "save": 6.0, "restore": 3.0},
            seconds=1.5,
        ),
        # Killed here.
        line(182, "damaged", 150, 2, reason="checksums.0of1.json is missing"),
        line(186, "restore", 100, 2, seconds=2.5),
        line(190, "start", 100, 2, {"total": 12.0}, resumed=True, **FACTS),
        line(230, "save", 200, 2, {"total": 52.0, "compile": 9.0, "data": 6.2, "save": 1.5}),
        line(240, "preemption", 225, 2),
        line(
            *(240, "end", 225, 2),
            {"total": 62.0, "compile": 9.0, "data": 7.2, "save": 3.5, "eval": 2.0},
            status="preempted",
        ),
        line(262, "restore", 225, 3, seconds=2.5),
        line(264, "start", 225, 3, {"total": 10.0}, resumed=True, **FACTS),
        line(
            *(330, "end", 400, 3),
            {"total": 76.0, "compile": 9.0, "eval": 3.0, "samples": 1.0},
            status="finished",
        ),
    ]


def write(path, lines):
    """To a file, as ``Journal`` does."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses to write beyond; like a full disk, it takes a part first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

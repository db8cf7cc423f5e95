"""Where the time went: against sums by hand, and against a simulation that knows the truth."""

import random

import hypothesis
import pytest
from hypothesis import strategies as st
from journals import FACTS, eventful, line

from t5x_llm.train.goodput import CATEGORIES, duration, goodput
from t5x_llm.train.summary import event_counts, summary, summary_lines


def test_by_hand():
    account = goodput(eventful())
    first = {
        # Life 1. Before the first save: 40 - 10 startup - 8 compiling - 0.5 data - 1.5 saving.
        "kept to 50": 20.0,
        # Then 28 to step 100 and 19.8 to step 141, given up; 25.5 back up to 100; 28.5 to 150,
        # lost to the kill.
        "rewinds": 28.0 + 19.8,
        "50 to 100": 25.5,
        "kills": 28.5,
    }
    second = 62.0 - 12.0 - 9.0 - 7.2 - 3.5 - 2.0
    third = 76.0 - 10.0 - 9.0 - 3.0 - 1.0
    assert account.seconds == pytest.approx(
        {
            "productive": first["kept to 50"] + first["50 to 100"] + second + third,
            "startup": 10.0 + (12.0 - 2.5) + (10.0 - 2.5),
            "compile": 8.0 + 9.0 + 9.0,
            "restore": 3.0 + 2.5 + 2.5,
            "save": 6.0 + 3.5,
            "data": 1.2 + 7.2,
            "eval": 5.0,
            "other": 1.0,
            "rewinds": first["rewinds"],
            "kills": first["kills"],
            "down": (190 - 12 - 150) + (264 - 10 - 240),
        }
    )
    assert account.total == pytest.approx(330.0) and account.lives == 3
    assert list(account.seconds) == list(CATEGORIES)
    table = account.table()
    assert f"Goodput {account.share('productive'):.1%} of 5 min 30 s (3 processes in turn)" in table
    assert "WASTED_PROGRESS_FROM_DISRUPTION" in table and "samples" in table


@pytest.mark.parametrize("seed", range(20))
def test_against_a_simulation(seed):
    """Steps of random length, saves, rewinds, kills, damage; the account is taken every step."""
    rng = random.Random(seed)
    lines, clock, saved = [], 0.0, [0]
    spent = dict.fromkeys(CATEGORIES, 0.0)
    counts, step, life = {}, 0, 0  # seconds of the steps that count

    def cut(to, part):
        for at in [s for s in counts if s > to]:
            spent[part] += counts.pop(at)

    while step < 60:
        life += 1
        if life > 1:
            gap = rng.uniform(0, 50)
            clock, spent["down"] = clock + gap, spent["down"] + gap
        age, startup = rng.uniform(5, 9), rng.uniform(1, 4)
        spent["startup"] += startup
        spent["restore"] += age - startup
        clock += age
        step = rng.choice(saved[-2:])  # the newest, or it is damaged
        saved = [s for s in saved if s <= step]
        cut(step, "kills")
        lines.append(line(clock, "restore", step, life, seconds=age - startup))
        account = {"total": age}
        lines.append(line(clock, "start", step, life, dict(account), **FACTS))

        def write(event, at, passed, part="", seconds=0.0, life=life, account=account, **fields):
            nonlocal clock
            clock += passed
            account["total"] += passed
            account[part or "data"] = account.get(part or "data", 0.0) + seconds
            spent[part or "data"] += seconds
            lines.append(line(clock, event, at, life, dict(account), **fields))

        while step < 60:
            waited, worked = rng.uniform(0, 0.2), rng.uniform(1, 2)
            step += 1
            counts[step] = worked
            write("alive", step, waited + worked, "data", waited)
            if step % 10 == 0:
                write("save", step, 0.5, "save", 0.5)
                saved.append(step)
            if rng.random() < 0.04:
                to = rng.choice(saved)
                write("rewind", step, 0.0, to_step=to, onset=step, detected=step, skip=[0, 1])
                cut(to, "rewinds")
                saved = [s for s in saved if s <= to]
                step = to
                write("alive", step, 2.0, "restore", 2.0)
            if rng.random() < 0.06:
                break
    spent["productive"] = sum(counts.values())
    account = goodput(lines)
    # Lines tell their time in whole milliseconds; each life has a first and a last one.
    cut_off = 2e-3 * life
    assert account.seconds == pytest.approx(spent, abs=cut_off)
    assert account.total == pytest.approx(clock, abs=cut_off) and account.lives == life


def test_a_finished_run_that_is_started_again_was_not_down():
    days = 86400.0
    again = [
        line(330 + days, "start", 400, 4, {"total": 5.0}, **FACTS),
        line(331 + days, "end", 400, 4, {"total": 6.0}, status="finished"),
    ]
    before, after = goodput(eventful()), goodput(eventful() + again)
    assert after.seconds["down"] == before.seconds["down"]
    assert after.total == pytest.approx(before.total + 6.0)


def test_second_run_of_one_process_does_not_count_its_age_twice():
    lines = [
        line(10, "start", 0, 1, {"total": 10.0}),
        line(20, "end", 10, 1, {"total": 20.0}, status="interrupted"),
        line(22, "start", 10, 2, {"total": 22.0}),
        line(30, "end", 20, 2, {"total": 30.0}, status="finished"),
    ]
    assert goodput(lines).total == pytest.approx(30.0)


def test_a_restore_counts_though_the_account_leaves_it_out():
    lines = [
        line(10, "start", 0, 1, {"total": 10.0}),
        line(30, "rewind", 20, 1, {"total": 30.0}, to_step=10),
        line(35, "restore", 10, 1, seconds=5.0),
        line(50, "end", 20, 1, {"total": 50.0}),
    ]
    spent = goodput(lines).seconds
    assert spent["restore"] == 5.0 and spent["rewinds"] == 10.0 and spent["productive"] == 25.0


def test_last_words_of_a_thread_that_knows_no_step():
    lines = [
        line(10, "start", 0, 1, {"total": 10.0}),
        line(30, "save", 20, 1, {"total": 30.0}),
        line(40, "end", 0, 1, {"total": 40.0}, status="PeerLost"),
        line(50, "start", 10, 2, {"total": 5.0}),
    ]
    spent = goodput(lines).seconds
    assert spent["kills"] == 20.0 and spent["productive"] == 10.0


def test_a_clock_set_back_gives_no_negative_time():
    lines = [
        line(100, "start", 0, 1, {"total": 10.0}),
        line(120, "save", 10, 1, {"total": 30.0}),
        line(20, "start", 10, 2, {"total": 5.0}),
        line(30, "end", 20, 2, {"total": 15.0}),
    ]
    assert min(goodput(lines).seconds.values()) >= 0


def test_starvation_is_reported():
    def run(waited):
        account = {"total": 110.0, "data": waited}
        start = line(10, "start", 0, 1, {"total": 10.0})
        return goodput([start, line(110, "end", 10, 1, account)])

    assert run(4.0).starvation == pytest.approx(0.04) and "Loop.prefetch" not in run(4.0).table()
    assert run(6.0).starvation == pytest.approx(0.06) and "Loop.prefetch" in run(6.0).table()


def test_nothing_is_no_division_by_zero():
    account = goodput([])
    assert account.total == 0 and account.share("down") == 0 and account.starvation == 0
    assert "Goodput 0.0%" in account.table()


def test_durations():
    seconds = (0.04, 59.9, 125, 12000, 12 * 86400 + 4 * 3600)
    assert [duration(s) for s in seconds] == [
        *("0.0 s", "59.9 s", "2 min 05 s", "3 h 20 min", "12 d 04 h")
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
EVENTS = sorted({x["event"] for x in eventful()}) + ["save_failed", "mixture", "stuck", "\x1b[31m"]
FIELDS = [
    *("seconds", "position", "reason", "kind", "onset", "detected", "to_step", "skip", "steps"),
    *("devices", "mesh", "processes", "resumed", "status", "attempt", "weights", "from_step"),
    *("tokens_by_source", "documents", "account", "other"),
]
LINES = st.builds(
    lambda second, event, step, life, fields: line(second, event, step, life) | fields,
    st.integers(0, 10**6),
    st.sampled_from(EVENTS),
    st.integers(0, 10**9),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8)
    | st.fixed_dictionaries(
        {"account": st.dictionaries(st.sampled_from(["total", "data", "x"]), st.floats(0, 1e9))}
    ),
)


@hypothesis.given(st.lists(LINES, max_size=12), st.booleans())
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_journal_can_be_told_and_counted(lines, everything):
    text = summary(lines, everything)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert event_counts(lines) and len(summary_lines(lines, True)) >= len(lines)
    account = goodput(lines)
    assert all(0 <= v < 1e12 for v in account.seconds.values())
    assert account.table()

"""Steps are found where the run read them, whatever changed on the way."""

from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.optim import BatchRamp
from t5x_llm.run.reading import ReadSchedule, reading, stretches
from t5x_llm.train.config import Loop


def loop(size, seed=0, ramp=None):
    return Loop(
        steps=100, batch_size=size, sequence_length=8, seed=seed,
        ramp=None if ramp is None else BatchRamp(ramp),
    )  # fmt: skip


PLANS = [loop(4), loop(8, seed=1), loop(3), loop(6, ramp=((0, 2), (8, 6))), loop(5)]


@st.composite
def histories(draw):
    """Lives of (plan, step it starts at, steps it makes); each goes on at a step made before."""
    made, reached = [], 0
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, reached))
        count = draw(st.integers(1, 9))
        made.append((draw(st.sampled_from(PLANS)), start, count))
        reached = start + count
    return made


@settings(max_examples=200, deadline=None)
@given(histories())
def test_every_step_begins_where_it_was_read(history):
    lines, before, by = [], {1: 0}, {}
    for life, (plan, start, count) in enumerate(history, 1):
        position = before[start + 1]
        record = {"reading": reading(plan, f"stream {life}"), "position": position}
        lines.append({"event": "start", "step": start, "life": life, **record})
        for step in range(start + 1, start + count + 1):
            before[step], by[step] = position, (plan.seed, f"stream {life}")
            position += plan.size_at(position)
        before[start + count + 1] = position
    schedule = ReadSchedule(tuple(stretches(lines, PLANS[0])))
    reached = history[-1][1] + history[-1][2]
    for step in range(1, reached + 1):
        found = schedule.at(step)
        assert found.first_example(step) == before[step]
        assert (found.loop.seed, found.stream) == by[step]
        assert schedule.step_at(before[step]) == step - 1
        assert schedule.step_at(before[step] + 1) == step
    assert schedule.examples_after(reached) == before[reached + 1]


def test_a_rewind_in_a_life_and_journals_without_a_record():
    start = {"event": "start", "step": 4, "life": 2, "position": 16}
    restored = {"event": "restore", "step": 2, "life": 2, "position": 8}
    lines = [start | {"reading": reading(loop(8), "s")}, restored]
    (only,) = stretches(lines, loop(4))
    assert (only.step, only.position, only.loop.batch_size) == (2, 8, 8)
    assert only.first_example(4) == 16
    (older,) = stretches([start], loop(8))
    assert older.loop == loop(8) and older.stream == ""
    assert stretches([], loop(4))[0].first_example(3) == 8
    damaged = start | {"reading": {"batch_size": -1}}
    assert stretches([damaged], loop(8))[0].loop == loop(8)

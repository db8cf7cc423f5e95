"""The summary of a journal, for people."""

from journals import FACTS, eventful, line

from t5x_llm.train.summary import event_counts, plain, summary, summary_lines


def test_the_whole_summary():
    text = summary(eventful(), width=200)
    for part in (
        "2026-11-22 10:00:10  step   0  begins at step 0 of 400 (8 x cpu; mesh data=2, fsdp=4; 1 p",
        "step  50  saved at step 50; training waited 1.5 s",
        "a bad step, update skipped: gradient norm 33.2, 9.1 x its level",
        "spike from step 138 on, seen at step 141: 3 bad steps within 5, the first: loss 7.103; "
        "its tokens by source: en 3,000, zh 120; its documents: en speeches.jsonl:812, zh poem",
        "rewound to step 50; examples 400 to 2,800 of the data are skipped: 3 bad steps",
        "checkpoint of step 50 restored in 3.0 s",
        "saved 2 times, last at step 150; not known to be complete: step 150; training waited",
        "killed; its last line was of step 150",
        "started again, 32.0 s after that",
        "checkpoint of step 150 is damaged: checksums.0of1.json is missing",
        "goes on from step 100 of 400",
        "step 225  preempted",
        "ended: finished",
        "In all: 2 restarts (1 killed), 1 rewind, 1 preemption, 1 damaged checkpoint, 1 skipped up",
    ):
        assert part in text.replace("\n" + " " * 31, " "), part
    assert "ended: preempted" not in text
    order = [text.index(word) for word in ("spike from", "rewound", "killed", "damaged: ")]
    assert order == sorted(order)


def test_routine_takes_one_line_and_everything_on_demand():
    lines = [line(0, "start", 0, 1, **FACTS)]
    for step in range(10, 110, 10):
        lines += [line(step, "save", step, 1, seconds=0.5), line(step, "saved", step, 1)]
        lines += [line(step, "alive", step, 1)]
    lines += [line(200 + i, "skip", 101 + i, 1) for i in range(3)]
    lines.append(line(300, "end", 120, 1, status="finished"))
    assert [each.text for each in summary_lines(lines)][1:-1] == [
        "saved 10 times, last at step 100; training waited 5.0 s",
        "3 bad steps from 101 on, 3 updates skipped",
    ]
    assert len(summary_lines(lines, everything=True)) == len(lines)
    # A save that is complete only after the next event is not named twice, nor as incomplete.
    late = [line(1, "save", 5, 1), line(2, "peak", 6, 1), line(3, "saved", 5, 1)]
    assert [each.text for each in summary_lines(late)] == ["saved at step 5", "a bad step"]
    assert event_counts(lines) == "3 skipped updates"
    assert event_counts(lines[:2]) == "no restart, no rewind, no damage"


def test_a_stuck_process_was_not_killed():
    lines = [line(0, "start", 0, 1), line(9, "stuck", 3, 1, reason="no step for 30 minutes")]
    lines.append(line(20, "start", 0, 2))
    lines[1]["step"] = 0  # the watchdog's thread knows none
    lines.insert(1, line(5, "save", 3, 1))
    assert [each.step for each in summary_lines(lines) if each.event == "stuck"] == [3]
    assert "killed" not in summary(lines) and "no step for 30 minutes" in summary(lines)


def test_values_of_any_kind_are_short_and_harmless():
    assert plain("a\x1b[31m\nb") == "a [31m b"
    assert plain({"en": 0.123456, "zh": 1234567}) == "en 0.1235, zh 1,234,567"
    assert plain(list(range(9))) == "0, 1, 2, 3, 4, 5 and 3 more"
    assert len(plain("x" * 10_000)) == 400 and plain(True) == "True"

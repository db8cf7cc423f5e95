"""A conversation printed with what is trained in it."""

from chat_cases import byte_level, talk

from t5x_llm.text.chat import Conversation, Message, encode_conversation, legend, show, template_for


def encoded(*turns):
    return encode_conversation(template_for("chatml", byte_level()), byte_level(), talk(*turns))


def test_marks_without_colour():
    assert show(encoded("Hi", "Ho", "中\x1b[2J", "é"), False) == (
        "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho<|im_end|>⟧\n"
        "<|im_start|>user\n中\\x1b[2J<|im_end|>\n<|im_start|>assistant\n⟪é<|im_end|>⟫\n"
    )


def test_colours():
    text = show(encoded("Hi", "Ho", "And?", "é"), True)
    assert "\x1b[36mHo<|im_end|>\x1b[0m\n" in text
    assert "\x1b[1;32mé<|im_end|>\x1b[0m\n" in text
    assert text.count("\x1b[") == 4


def test_what_is_never_trained_and_the_legend():
    turns = (Message("user", "a"), Message("assistant", "bc", trained=False), Message("user", "d"))
    conversation = Conversation((*turns, Message("assistant", "e")))
    found = encode_conversation(template_for("chatml", byte_level()), byte_level(), conversation)
    assert "⟨-bc<|im_end|>-⟩" in show(found, False)
    prompt = int((found.codes == 1).sum())
    assert legend(found, False) == (
        f"⟨-never trained 3-⟩, prompt {prompt}, ⟦earlier turn 0⟧, ⟪last turn 2⟫"
    )


def test_output_that_is_no_terminal_has_no_colour(monkeypatch, capsys):
    assert "\x1b" not in show(encoded("Hi", "Ho"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in show(encoded("Hi", "Ho"))
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[1;32m" in show(encoded("Hi", "Ho"))

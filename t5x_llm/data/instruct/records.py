"""Typed records of instruction data: dialogues, preferences, labelled answers, labelled steps.

Supervised fine-tuning takes of each its ``taught`` conversation: the dialogue itself, the chosen
answer, a good answer, or a solution whose steps are all right.
"""

from __future__ import annotations

import dataclasses

from t5x_llm.text.chat import Conversation, Message


class Unreadable(Exception):
    """A row that cannot be read; its text is the reason, the same for all rows that fail alike."""


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One conversation to learn from.

    Attributes:
      conversation: its turns.
      group: what it shares with others that are held out together, such as the tree of an OASST
        conversation; "" for itself alone.
    """

    conversation: Conversation
    group: str = ""

    @property
    def taught(self) -> Conversation | None:
        """The conversation that supervised fine-tuning learns."""
        return self.conversation


@dataclasses.dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer.

    Attributes:
      prompt: turns before the answers.
      chosen: turns of the better answer.
      rejected: turns of the worse answer.
      group: as ``Dialogue.group``.
    """

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    group: str = ""

    @property
    def taught(self) -> Conversation | None:
        """The prompt with the better answer."""
        return continued(self.prompt, self.chosen)


@dataclasses.dataclass(frozen=True)
class LabelledAnswer:
    """A prompt with an answer that is good or bad.

    Attributes:
      prompt: turns before the answer.
      answer: turns of the answer.
      good: True for an answer to learn, False for one to unlearn.
      group: as ``Dialogue.group``.
    """

    prompt: Conversation
    answer: tuple[Message, ...]
    good: bool
    group: str = ""

    @property
    def taught(self) -> Conversation | None:
        """The prompt with its answer; None for a bad one."""
        return continued(self.prompt, self.answer) if self.good else None


@dataclasses.dataclass(frozen=True)
class LabelledSteps:
    """A problem with the steps of a solution, each right or wrong.

    Attributes:
      prompt: turns before the solution.
      steps: texts of the steps.
      labels: of each step True for right, False for wrong, None where it was not judged.
      group: as ``Dialogue.group``.
    """

    prompt: Conversation
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]
    group: str = ""

    @property
    def taught(self) -> Conversation | None:
        """The prompt with the whole solution; None unless every step is right."""
        if not all(label is True for label in self.labels):
            return None
        return continued(self.prompt, (Message("assistant", "\n".join(self.steps)),))


TypedRecord = Dialogue | Preference | LabelledAnswer | LabelledSteps


def continued(prompt: Conversation, answer: tuple[Message, ...]) -> Conversation:
    """Returns a conversation with further turns, of which those of the prompt are not trained."""
    before = tuple(
        dataclasses.replace(m, trained=False) if m.role == "assistant" else m
        for m in prompt.messages
    )
    return Conversation((*before, *answer), prompt.tools)

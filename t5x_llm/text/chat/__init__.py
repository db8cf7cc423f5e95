"""Chat: messages to ids and masks by one rendering and one tokenisation."""

from t5x_llm.text.chat.encoding import CODES, Encoded, encode_conversation, encode_prompt
from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.chat.messages import Conversation, Message
from t5x_llm.text.chat.proofs import Proofs, prove
from t5x_llm.text.chat.rendering import Rendered, render
from t5x_llm.text.chat.show import legend, show
from t5x_llm.text.chat.template import (
    BUILTIN,
    ChatTemplate,
    builtin,
    special_texts,
    template_for,
)

__all__ = [
    "BUILTIN",
    "CODES",
    "ChatTemplate",
    "Conversation",
    "Encoded",
    "Message",
    "Proofs",
    "Rendered",
    "TemplateError",
    "builtin",
    "encode_conversation",
    "encode_prompt",
    "legend",
    "prove",
    "render",
    "show",
    "special_texts",
    "template_for",
]

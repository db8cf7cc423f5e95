"""Chat: messages to ids and masks by one rendering and one tokenisation."""

from t5x_llm.text.chat.encoding import CODES, Encoded, encode_conversation, encode_prompt
from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.chat.messages import Conversation, Message
from t5x_llm.text.chat.rendering import Rendered, render
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
    "Rendered",
    "TemplateError",
    "builtin",
    "encode_conversation",
    "encode_prompt",
    "render",
    "special_texts",
    "template_for",
]

"""A chat: the history of one conversation, and replies to it as messages, text or events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.inference.engine import Engine
from chatwright.inference.reply_events import ChatEvent
from chatwright.inference.responder import Responder
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.templates.base import Template


class ChatSession:
    """One conversation with a model, tools in the loop.

    Args:
        engine: made by `responder.make_engine` for the same template.
        toolbox: runs the model's calls; None leaves them unanswered: a reply ends where it calls.
        system: the system message, or None.
        tools: definitions in OpenAI's schema for templates that list them in the prompt.
        variables: template variables such as `enable_thinking`.
        max_tool_calls: a reply that calls more often ends there.
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        toolbox: ToolBox | None = None,
        system: str | None = None,
        settings: SamplingSettings | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        max_tool_calls: int = 8,
    ) -> None:
        self.responder = Responder(engine, template, toolbox, max_tool_calls)
        self.settings = settings or SamplingSettings()
        self.system = system
        self.tools, self.variables = tuple(tools), dict(variables or {})
        self._messages: list[Message] = []
        self.reset()

    def use_tools(self, toolbox: ToolBox | None, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Answer calls from now on with `toolbox`, and list `tools` in the prompt where the template does that."""
        self.responder.toolbox, self.tools = toolbox, tuple(tools)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history, system message included."""
        return tuple(self._messages)

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self._messages = [] if self.system is None else [Message.of("system", self.system)]

    def ask(self, text: str) -> Message:
        """The reply to `text`; both join the history.

        Raises:
            TemplateError: the conversation can't be rendered. ModelError: it is too long for the model.
        """
        for _ in self.stream_events(text):
            pass
        return self._messages[-1]

    def stream(self, text: str) -> Iterator[str]:
        """The visible words of the reply to `text` as they come; never half a character."""
        for event in self.stream_events(text):
            if event.kind == "text":
                yield event.text

    def stream_events(self, text: str) -> Iterator[ChatEvent]:
        """As `stream`, with thinking, tool calls and their results.

        Closing the iterator cancels: the history is then as if nothing had been asked.
        """
        user = Message.of("user", text)
        reply = yield from self.responder.events(self._conversation(user), self.settings)
        self._messages += [user, reply.message]

    def reply_many(
        self, conversations: Sequence[Conversation], settings: SamplingSettings | None = None
    ) -> list[Message]:
        """Replies to other conversations, generated together; the history has no part in it."""
        return self.responder.reply_many(conversations, settings or self.settings)

    def _conversation(self, user: Message) -> Conversation:
        return Conversation((*self._messages, user), tools=self.tools, variables=self.variables)

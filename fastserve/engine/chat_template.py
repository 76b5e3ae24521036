"""Messages to token ids, by the template that the model brings along.

Control tokens that the template writes are meant; the same spelled out in a message is text, or else a user
could end their own turn and speak as the system. Both meet in one rendered string, so before rendering the
first character of every control token spelled in a message is replaced by a stand-in that occurs nowhere
else. The result is cut at the control tokens that are left, and the stand-ins are put back before the text
between is encoded. That text stays whole, so a message without control tokens encodes exactly as the rendered
string does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError

from fastserve.engine.chat_messages import check_messages, texts_of
from fastserve.engine.special_disguise import SpecialDisguise
from fastserve.engine.template_sandbox import Budget, TemplateRaisedError, TemplateSandbox
from fastserve.engine.tokenizer import Tokenizer
from fastserve.errors import ModelConfigError

MAX_TEMPLATE_CHARS = 256 * 1024  # the longest known, with tools and citations, are under 32 KB
TIME_LIMIT_S = 2.0  # an ordinary rendering takes about 1 ms


class ChatTemplate:
    """How a model wants a conversation to be written.

    source    the template's text
    bos, eos  the texts of these tokens, for the template to use
    clock     monotonic seconds, for the time limit; `now` is what strftime_now() shows

    A template that can't be read is reported when it's used: such a model still completes texts.
    """

    def __init__(
        self,
        source: str,
        bos: str,
        eos: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._variables = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        self._clock = clock
        self._now = now
        self._code: CodeType | None = None
        self._problem = ""  # why there is no code
        self._compile(source)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a GGUF file; None for a base model, which has none and can't chat."""
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelConfigError(f"tokenizer.chat_template must be a string, got {type(source).__name__}")
        bos, eos = (
            "" if token_id is None else tokenizer.token_text(token_id)
            for token_id in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos, eos)

    def render(self, messages: object, *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, for people to read; for the model it's `render_ids` that counts.

        Raises what `render_ids` raises.
        """
        return self._run(check_messages(messages), add_generation_prompt)

    def render_ids(
        self, messages: object, tokenizer: Tokenizer, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The conversation's token ids; BOS only where the template writes it.

        Raises ValueError for messages that are malformed, too long or refused by the template,
        ModelConfigError for a template that is broken or takes too much time or memory.
        """
        checked = check_messages(messages)
        disguise = SpecialDisguise(tokenizer.special_texts, [self.source, *texts_of(checked)])
        hidden = [{key: disguise.hide(key, text) for key, text in message.items()} for message in checked]
        ids: list[int] = []
        for piece in tokenizer.partition(self._run(hidden, add_generation_prompt), parse_special=True):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += tokenizer.encode(disguise.show(piece), add_special=False)
        return ids

    def _compile(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            self._problem = f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters"
            return
        try:
            self._code = self._sandbox().compile_guarded(source)
        except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self._problem = f"the chat template can't be read: {type(error).__name__}: {error}"

    def _sandbox(self) -> TemplateSandbox:
        return TemplateSandbox(Budget(seconds=TIME_LIMIT_S, clock=self._clock))

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if self._code is None:
            raise ModelConfigError(self._problem)
        sandbox = self._sandbox()
        sandbox.globals["strftime_now"] = self._strftime_now
        template = Template.from_code(sandbox, self._code, sandbox.make_globals(None))
        variables = self._variables | {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return sandbox.concatenate(
                _ticking(template.root_render_func(template.new_context(variables)), sandbox)
            )
        except TemplateRaisedError as error:
            raise ValueError(f"the model's chat template refuses these messages: {error}") from None
        except Exception as error:  # a model's code may raise anything
            raise ModelConfigError(f"the chat template failed: {type(error).__name__}: {error}") from None

    def _strftime_now(self, pattern: str) -> str:
        if len(pattern) > 100 or re.search(r"\d{3}", pattern):
            raise ValueError("strftime_now's pattern is too long")
        return self._now().strftime(pattern)


def _ticking(chunks: Iterable[Any], sandbox: TemplateSandbox) -> Iterable[Any]:
    for chunk in chunks:
        sandbox.tick()
        yield chunk

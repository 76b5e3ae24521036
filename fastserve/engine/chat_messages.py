"""A conversation as a caller sends it, checked before a template sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MAX_MESSAGES = 2_000
MAX_CONTENT_CHARS = 1_000_000  # of all messages; a rendering may build four times that
# A template may make control tokens of roles ('<|' + role + '|>'), so a role is never the user's own word.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def check_messages(messages: object) -> list[dict[str, str]]:
    """`messages` with each content as one text; parts of type text are joined by line ends.

    Raises ValueError naming the message, the rule and the value.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError(f"messages must be a non-empty list, got {_shown(messages)}")
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"messages must be at most {MAX_MESSAGES}, got {len(messages)}")
    checked = [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    num_chars = sum(map(len, texts_of(checked)))
    if num_chars > MAX_CONTENT_CHARS:
        raise ValueError(f"messages must hold at most {MAX_CONTENT_CHARS} characters, got {num_chars}")
    return checked


def _check_message(where: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, got {_shown(message)}")
    unknown = [key for key in message if key not in ("role", "content", "name")]
    if unknown:
        raise ValueError(f"{where} may hold role, content and name only, got {_shown(unknown[0])}")
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(ROLES)}, got {_shown(role)}")
    checked = {"role": str(role), "content": _check_content(f"{where}.content", message.get("content"))}
    name = message.get("name")
    if name is not None:
        if not isinstance(name, str):
            raise ValueError(f"{where}.name must be a string, got {_shown(name)}")
        checked["name"] = name
    return checked


def _check_content(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"{where} must be a string or a list of text parts, got {_shown(content)}")
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ValueError(f'{where}[{i}] must be {{"type": "text", "text": ...}}, got {_shown(part)}')
        texts.append(text)
    return "\n".join(texts)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def texts_of(messages: Iterable[Mapping[str, str]]) -> list[str]:
    return [text for message in messages for text in message.values()]

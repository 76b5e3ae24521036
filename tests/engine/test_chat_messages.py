"""What is not a conversation names itself."""

from __future__ import annotations

import pytest

from fastserve.engine.chat_messages import MAX_CONTENT_CHARS, MAX_MESSAGES, check_messages

HELLO = [{"role": "user", "content": "Hello"}]


def test_parts_of_text_are_joined_by_line_ends() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert check_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]


def test_name_is_kept() -> None:
    message = {"role": "user", "content": "x", "name": "Ada"}
    assert check_messages([message]) == [message]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be a non-empty list"),
        ("Hello", "messages must be a non-empty list, got 'Hello'"),
        (["Hello"], r"messages\[0\] must be an object with role and content, got 'Hello'"),
        ([{"content": "x"}], r"messages\[0\]\.role must be one of system, .*, got None"),
        ([{"role": "<|im_start|>", "content": "x"}], r"role must be one of .*, got '<\|im_start\|>'"),
        ([{"role": ["user"], "content": "x"}], "role must be one of .*, got a list"),
        (
            [*HELLO, {"role": "user"}],
            r"messages\[1\]\.content must be a string or a list of text parts, got None",
        ),
        ([{"role": "user", "content": 3}], "content must be a string or a list of text parts, got 3"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] must be .*, got a dict"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"content\[0\] must be"),
        (
            [{"role": "user", "content": "x", "tool_calls": []}],
            "may hold role, content and name only, got 'tool_calls'",
        ),
        ([{"role": "user", "content": "x", "name": 1}], "name must be a string, got 1"),
        (HELLO * (MAX_MESSAGES + 1), f"at most {MAX_MESSAGES}, got {MAX_MESSAGES + 1}"),
        (
            [{"role": "user", "content": "x" * (MAX_CONTENT_CHARS + 1)}],
            f"at most {MAX_CONTENT_CHARS} characters",
        ),
    ],
)
def test_malformed_messages_name_themselves(messages: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_messages(messages)

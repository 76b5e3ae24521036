"""A conversation, with a model that repeats what it was told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from fastserve.cli import chat, generate, speech
from fastserve.cli.main import main
from fastserve.errors import CapacityError
from fastserve.request import CompletionOutput, RequestOutput, SamplingParams


class EchoLLM:
    """Answers a text or a conversation with "re:" and its last line, in two pieces."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.raises: BaseException | None = None
        self.num_closed = 0

    def __enter__(self) -> EchoLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.num_closed += 1

    def stream(self, prompt: Any, params: SamplingParams) -> Iterator[RequestOutput]:
        self.asked.append(prompt)
        self.params.append(params)
        if isinstance(self.raises, CapacityError):
            raise self.raises
        return self._pieces(prompt)

    def _pieces(self, prompt: Any) -> Iterator[RequestOutput]:
        last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        yield self._output("re:", False)
        if self.raises is not None:
            raise self.raises
        yield self._output(f"re:{last}", True)

    def generate(self, prompts: list[str], params: SamplingParams) -> list[RequestOutput]:
        self.asked.append(prompts)
        return [self._output(f"re:{prompt}", True) for prompt in prompts]

    def chat(self, conversations: list[Any], params: SamplingParams) -> list[RequestOutput]:
        return self.generate([messages[-1]["content"] for messages in conversations], params)

    def _output(self, text: str, finished: bool) -> RequestOutput:
        return RequestOutput("0", None, [1], [CompletionOutput(0, text, [1])], finished)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> EchoLLM:
    fake = EchoLLM()
    for module in (chat, generate):
        monkeypatch.setattr(module, "load", lambda settings: fake)
    monkeypatch.delenv("FASTSERVE_CONFIG", raising=False)
    return fake


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_conversation_remembers_its_turns(
    llm: EchoLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "one", "", "two")
    assert main(["chat", "--system", "be brief"]) == 0
    system = {"role": "system", "content": "be brief"}
    assert llm.asked == [[system, user("one")], [system, user("one"), assistant("re:one"), user("two")]]
    assert capsys.readouterr().out == "re:one\nre:two\n"
    assert llm.num_closed == 1


def test_reset_forgets_all_but_the_system(llm: EchoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "one", "/reset", "two")
    assert main(["chat"]) == 0
    assert llm.asked[-1] == [user("two")]


def test_exit_ends_before_what_follows(llm: EchoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "/exit", "one")
    assert main(["chat"]) == 0
    assert llm.asked == []


def test_ctrl_c_interrupts_the_answer_and_keeps_what_was_said(
    llm: EchoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [user("hello"), assistant("hi")]
    llm.raises = KeyboardInterrupt()
    after = chat._turn(llm, SamplingParams(), messages, "one")  # type: ignore[arg-type]
    assert after == [*messages, user("one"), assistant("re:")]


def test_a_turn_that_does_not_fit_is_said_and_forgotten(
    llm: EchoLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.raises = CapacityError("needs 9 blocks, 4 exist")
    assert chat._turn(llm, SamplingParams(), [], "one") == []  # type: ignore[arg-type]
    assert "needs 9 blocks, 4 exist" in capsys.readouterr().err


def test_the_seed_of_the_command_line_is_the_answers(llm: EchoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "one")
    assert main(["chat", "--seed", "7", "--temperature", "0.5", "--stop", "END"]) == 0
    assert llm.params[0].seed == 7
    assert llm.params[0].temperature == 0.5
    assert llm.params[0].stop == ("END",)


def test_one_prompt_is_streamed(llm: EchoLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one"]) == 0
    assert llm.asked == ["one"]
    assert capsys.readouterr().out == "re:one\n"


def test_several_prompts_are_one_batch_in_order(llm: EchoLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one", "two"]) == 0
    assert llm.asked == [["one", "two"]]
    assert capsys.readouterr().out == "re:one\nre:two\n"


def test_without_a_prompt_stdin_is_one(
    llm: EchoLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "one", "two")
    assert main(["generate", "--chat"]) == 0
    assert llm.asked == [[user("one\ntwo")]]


def test_show_writes_each_piece_once(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [
        RequestOutput("0", None, [], [CompletionOutput(0, text, [])], False) for text in ("a", "ab", "abc")
    ]
    assert speech.show(outputs) == "abc"
    assert capsys.readouterr().out == "abc"

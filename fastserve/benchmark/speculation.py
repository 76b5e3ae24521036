"""Decode with drafts against plain decode: two engines in turns, on texts of several kinds.

A turn generates the same answers with both, one after the other, and compares what passed between the first token and
the last. Both must give the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import NamedTuple

from fastserve.config import EngineConfig, Speculation
from fastserve.engine.build import build_engine
from fastserve.engine.engine import Engine
from fastserve.request import SamplingParams

_FUNCTIONS = """def read_config(path):
    with open(path) as file:
        return json.load(file)


def write_config(path, config):
    with open(path, "w") as file:
        json.dump(config, file, indent=4)


def update_config(path, key, value):
    config = read_config(path)
    config[key] = value
    write_config(path, config)


def delete_config(path, key):
    config = read_config(path)
    del config[key]
    write_config(path, config)
"""
_CLASS = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("peek at an empty stack")
        return self.items[-1]

    def size(self):
        return len(self.items)
"""
_MINUTES = (
    "The committee met on the third of May in the town hall, where Mrs Henderson presented the accounts of the past "
    "year. Mr Okafor asked why the roof had cost twice what was planned. The treasurer promised a report by June. "
    "It was agreed that the summer fair should be held in the park again, and that the band would be asked to play. "
    "Two members offered to paint the benches. The next meeting will be on the first of September."
)
_VERSES = 2 * "The waves come in, the waves go out, and nobody counts them.\n" + "Row on, row on.\n"
_CODE = "Add a docstring to each function of this code and show all of it:\n\n```python\n{}```"
TEXTS = {
    "code": (_CODE.format(_FUNCTIONS), _CODE.format(_CLASS)),
    "repeated text": (
        f"Repeat this text exactly:\n\n{_MINUTES}",
        f"Repeat this song exactly:\n\n{3 * _VERSES}",
    ),
    "prose": (
        "Tell me a story of an old fisherman who never learned to swim.",
        "What was it like to live in a medieval town?",
    ),
}
_MODES: tuple[Speculation, ...] = ("off", "auto")
KINDS = tuple(TEXTS)


@dataclass
class Comparison:
    """Of one kind of text: a ratio per turn, how many times as fast with drafts; and what the drafts were worth."""

    kind: str
    ratios: list[float] = field(default_factory=list)
    plain_rates: list[float] = field(default_factory=list)  # tokens/s
    num_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def __str__(self) -> str:
        quarter = len(self.ratios) // 4
        low, high = sorted(self.ratios)[quarter], sorted(self.ratios)[-1 - quarter]
        return (
            f"{self.kind}: {median(self.ratios):.2f}x plain decode ({low:.2f} to {high:.2f}; plain "
            f"{median(self.plain_rates):.1f} tokens/s); {self.num_drafted} drafts of {self.num_tokens} tokens, "
            f"{self.num_accepted} right"
        )


class SpeculationBenchmark:
    """`params` may sample: both engines draw the same. `together` requests run at a time."""

    def __init__(self, config: EngineConfig, params: SamplingParams, *, together: int = 1) -> None:
        self._plain, self._drafting = (build_engine(replace(config, speculation=mode)) for mode in _MODES)
        self._params = params
        self._together = together

    def compare(self, kind: str, rounds: int) -> Comparison:
        found = Comparison(kind)
        batches = self._batches([self._encode(text) for text in TEXTS[kind]])
        for batch in batches:
            for engine in (self._plain, self._drafting):
                _decode(engine, batch, self._params)
        before = self._drafts()
        for turn in range(rounds):
            for batch in batches:
                self._take_turn(found, batch, plain_first=turn % 2 == 0)
        found.num_drafted, found.num_accepted = (
            now - then for now, then in zip(self._drafts(), before, strict=True)
        )
        return found

    def close(self) -> None:
        for engine in (self._plain, self._drafting):
            engine.close()

    def _batches(self, prompts: list[list[int]]) -> list[list[list[int]]]:
        """Each prompt is in as many as any other."""
        count = max(len(prompts) // self._together, 1)
        of_all = islice(cycle(prompts), count * self._together)
        return [list(islice(of_all, self._together)) for _ in range(count)]

    def _take_turn(self, found: Comparison, batch: list[list[int]], *, plain_first: bool) -> None:
        def take(engine: Engine) -> _Decoded:
            return _decode(engine, batch, self._params)

        if plain_first:
            plain, drafting = take(self._plain), take(self._drafting)
        else:
            drafting, plain = take(self._drafting), take(self._plain)
        assert plain.tokens == drafting.tokens, "drafts change no token"
        num_tokens = sum(map(len, plain.tokens.values()))
        found.ratios.append(plain.seconds / drafting.seconds)
        found.plain_rates.append(num_tokens / plain.seconds)
        found.num_tokens += num_tokens

    def _encode(self, text: str) -> list[int]:
        engine = self._plain
        if engine.chat_template is None:
            return list(engine.tokenizer.encode(text, add_special=True))
        return list(engine.chat_template.render_ids([{"role": "user", "content": text}], engine.tokenizer))

    def _drafts(self) -> tuple[int, int]:
        """Drafts and right ones, so far."""
        metrics = self._drafting.metrics
        return int(metrics.draft_tokens.value), int(metrics.accepted_tokens.value)


class _Decoded(NamedTuple):
    tokens: dict[str, list[int]]  # of each request
    seconds: float  # from when all had drawn a token to the last of all


def _decode(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> _Decoded:
    tokens: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        engine.add_request(f"bench-{i}", prompt, params)
    first_s = last_s = 0.0
    while engine.has_work:
        deltas = engine.step()
        last_s = perf_counter() if deltas else last_s
        for delta in deltas:
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        if not first_s and len(tokens) == len(prompts):
            first_s = last_s
    return _Decoded(tokens, last_s - first_s)

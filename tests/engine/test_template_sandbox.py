"""Templates find what they need, reach nothing else, and end in time and in bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from fastserve.engine.chat_template import ChatTemplate
from fastserve.errors import ModelConfigError


def rendered(source: str, **options: Any) -> str:
    messages = [{"role": "user", "content": "Hello"}]
    return ChatTemplate(source, "<s>", "</s>", **options).render(messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}|{{ tools is none }}|{{ undefined_thing }}", "<s>|</s>|True|"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello"}]'),
        ("{{ {'é<': 1} | tojson(indent=2) }}", '{\n  "é<": 1\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "24 Nov 2026"),
        ("  {% if true %}\nx\n  {% endif %}\n  y", "x\n  y"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ 'x' }}{% endgeneration %}", "x"),
        (
            "{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}"
            "{{ ns.x }}",
            "4",
        ),
        ("{% macro m(a, b='c') %}{{ a ~ b }}{% endmacro %}{% set t %}{{ m(1) }}!{% endset %}{{ t }}", "1c!"),
        ("{{ ['a', 'b'] | map('upper') | join(', ') }}{{ 'axa'.replace('a', 'bb') }}", "A, Bbbxbb"),
        ("{{ messages | map(attribute='role') | join }}", "user"),
        ("{% for m in messages %}{{ m.content.strip('H').replace('o', '!') }}{% endfor %}", "ell!"),
        ("{{ (messages * 2) | join('-', 'role') }}", "user-user"),
        ("{% for m in messages[::-1] %}{{ loop.index }}{{ m.content[:2] }}{% endfor %}", "1He"),
        ("{{ 'a\nb' | indent(2) }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ '=' * 3 }}", "a\n  b332==="),
        (
            "{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}{{ messages[0].items() | list }}",
            "12[('role', 'user'), ('content', 'Hello')]",
        ),
        ("{% if 'x' in ['x'] and messages[0].content is string %}{{ -1 if false }}y{% endif %}", "y"),
    ],
)
def test_templates_have_what_hugging_face_gives_them(source: str, text: str) -> None:
    assert rendered(source, now=lambda: datetime(2026, 11, 24)) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages | undefined_filter }}",
        "{{ 'a' | center(99999999) }}",
        "{{ unknown_function() }}",
    ],
)
def test_templates_reach_nothing_outside(source: str) -> None:
    with pytest.raises(ModelConfigError, match="the chat template"):
        rendered(source)


class SteppingClock:
    """Every look at it is a millisecond."""

    def __init__(self) -> None:
        self.num_looks = 0

    def __call__(self) -> float:
        self.num_looks += 1
        return self.num_looks / 1000


NINE = "{% for i in range(9999) %}"
MACRO = "{% macro twice(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(x='ab') %}"


@pytest.mark.parametrize(
    "source",
    [
        f"{NINE}{NINE}{{% endfor %}}{{% endfor %}}",
        f"{NINE}{NINE}x{{% endfor %}}{{% endfor %}}",
        "{% macro m(n) %}{{ m(n + 1) if n < 40 }}{{ m(n + 1) if n < 40 }}{% endmacro %}{{ m(0) }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{{ loop([[1]]) }}{% endfor %}",
        "{{ (range(9999) | map('string') | list) | map('trim') | list | length }}",
    ],
)
def test_endless_templates_run_out_of_time(source: str) -> None:
    clock = SteppingClock()
    with pytest.raises(ModelConfigError, match=r"ran for more than 2 s|RecursionError"):
        rendered(source, clock=clock)
    assert clock.num_looks < 5_000


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 999999999999 }}",
        "{{ [0] * 99999999 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ range(99999999) | list }}",
        "{{ 'a'.ljust(9999999999) }}",
        "{{ 'a'.center(9999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a' | indent(9999999999, true) * 9999 }}",
        "{{ strftime_now('%999999999d') }}",
        "{{ [1] | tojson(indent=999999999) }}",
        f"{{% set x = 'a' * 999999 %}}{NINE}{{{{ x }}}}{{% endfor %}}",
        "{{ messages[0].content.translate({72: 'x' * 99}) }}",
    ],
)
def test_swelling_templates_are_stopped(source: str) -> None:
    with pytest.raises(ModelConfigError, match="the chat template failed"):
        rendered(source)


@pytest.mark.parametrize(
    "doubled",
    [
        "ns.x + ns.x",
        "ns.x ~ ns.x",
        "[ns.x, ns.x]",
        "(ns.x, ns.x)",
        "{'a': ns.x, 'b': ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "ns.x.replace('a', ns.x)",
        "ns.x | replace('a', ns.x)",
        "ns.x.join(['c', ns.x])",
        "[ns.x, ns.x] | join",
        "twice(ns.x)",
    ],
)
def test_doubling_templates_are_stopped(doubled: str) -> None:
    clock = SteppingClock()
    with pytest.raises(ModelConfigError, match="built a value of more than"):
        rendered(f"{MACRO}{{% for i in range(60) %}}{{% set ns.x = {doubled} %}}{{% endfor %}}", clock=clock)
    assert clock.num_looks < 1_000


def test_doubling_blocks_are_stopped() -> None:
    block = "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}"
    with pytest.raises(ModelConfigError, match="built a value of more than"):
        rendered(f"{MACRO}{{% for i in range(60) %}}{block}{{% endfor %}}")


def test_namespaces_that_hold_each_other_are_not_followed() -> None:
    doubling = "{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}"
    assert rendered(MACRO + doubling + "{{ ns.x }}") == "<namespace>"

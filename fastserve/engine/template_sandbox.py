"""Where a model's chat template runs: it comes with a file from anywhere, so it's code that nobody has read.

jinja2's immutable sandbox keeps it from the interpreter. What that leaves open is time and memory: loops over
loops, recursive macros, strings that double. So every loop round, macro, filter and function call looks at
the clock, and nothing that grows (concatenation, repetition, joining, nesting) may exceed a size.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_VALUE_CHARS = 4_000_000  # of any string built, any container written out, and all of the output
ITEM_CHARS = 16  # what else than a string counts as: at most 250,000 of these are walked, in under 0.1 s
MAX_WIDTH = 10_000  # integers given to functions: enough for any range or index in a chat template
MAX_INTEGER_BITS = 4_096
# Those that chat templates use; round, center, format, batch, wordwrap and the like only cost time or memory.
_FILTERS = """
    abs capitalize count d default dictsort e escape first float indent int items join last length list
    lower map max min reject rejectattr replace reverse safe select selectattr sort string sum title trim
    unique upper
"""
_STRING_METHODS = """
    capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric
    isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
FILTERS = frozenset(_FILTERS.split())
STRING_METHODS = frozenset(_STRING_METHODS.split())


class TemplateLimitError(SecurityError):
    """The template took more time or memory than a chat template can need."""


class TemplateRaisedError(TemplateError):
    """The template's own complaint about the messages, by raise_exception()."""


class Budget:
    """What one rendering may still use."""

    def __init__(self, *, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._deadline = clock() + seconds

    def tick(self) -> None:
        if self._clock() > self._deadline:
            raise TemplateLimitError(f"it ran for more than {self._seconds:g} s")

    def check_chars(self, num_chars: int) -> None:
        if num_chars > MAX_VALUE_CHARS:
            raise TemplateLimitError(f"it built a value of more than {MAX_VALUE_CHARS} characters")

    def check(self, value: Any) -> Any:
        """`value`, if it wouldn't be too long written out."""
        pending, size = [value], 0
        while pending:
            item = pending.pop()
            size += len(item) if isinstance(item, str) else ITEM_CHARS
            self.check_chars(size)
            if isinstance(item, Mapping):
                pending += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                pending += item
        return value


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}, which marks what a model is trained on, means nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Guards(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and a size check around all that builds a value."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenate", [nodes.List(node.nodes)])

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._checked(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._checked(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._checked(node)

    def _ticking(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [])))
        return node

    def _checked(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("check", [node])


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class _Namespace(Namespace):
    """jinja2's, but written out it isn't followed: namespaces may hold each other without end."""

    def __repr__(self) -> str:
        return "<namespace>"


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """One rendering's environment; set up as Hugging Face's, whose templates these are."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, _Generation]
        )
        self._budget = budget
        self.tick = budget.tick
        self.check = budget.check
        self.concatenate = self._concatenate
        # By this jinja2 joins what macros and block assignments have written.
        self.concat = self._concatenate  # type: ignore[method-assign]
        filters = {name: rule for name, rule in self.filters.items() if name in FILTERS}
        filters |= {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "tojson": self._to_json,
        }
        self.filters = {name: self._ticking(rule) for name, rule in filters.items()}
        self.globals = {"dict": dict, "namespace": _Namespace, "range": safe_range, "raise_exception": _raise}

    def compile_guarded(self, source: str) -> CodeType:
        """The template's code, with the guards in it; for any TemplateSandbox to run."""
        tree = _Guards().visit(self.parse(source))
        tree.set_environment(self)
        tree.set_lineno(1)
        return self.compile(tree)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        own = (__self.tick, __self.check, __self.concatenate)
        if any(__obj is one for one in own):
            return __obj(*args)
        __self.tick()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_WIDTH:
                raise TemplateLimitError(f"it called a function with {value}; the limit is {MAX_WIDTH}")
        text, method = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str):
            # Within loops and blocks jinja2 passes their variables along, for functions of its own.
            named = {name: value for name, value in kwargs.items() if not name.startswith("_")}
            return __self.check(__self._call_string_method(text, method, *args, **named))
        return __self.check(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("strings can't be formatted in a chat template")
        if operator == "+" and _is_sized(left) and _is_sized(right):
            self._budget.check_chars(len(left) + len(right))
        if operator == "*":
            self._check_product(left, right)
        if operator == "**" and _bits(left) * abs(right if isinstance(right, int) else 1) > MAX_INTEGER_BITS:
            raise TemplateLimitError("it computed with numbers that are too large")
        result = super().call_binop(context, operator, left, right)
        return self.check(result) if _is_sized(result) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            raise SecurityError("strings can't be formatted in a chat template")
        return None

    def _check_product(self, left: Any, right: Any) -> None:
        sized, times = (left, right) if _is_sized(left) else (right, left)
        if _is_sized(sized) and isinstance(times, int):
            self._budget.check_chars(len(sized) * max(times, 0))
        elif _bits(left) + _bits(right) > MAX_INTEGER_BITS:
            raise TemplateLimitError("it computed with numbers that are too large")

    def _call_string_method(self, text: str, method: str, *args: Any, **kwargs: Any) -> Any:
        if method not in STRING_METHODS:
            raise SecurityError(f"strings have no {method}() in a chat template")
        if method == "join":
            (parts,) = args
            return self._join(parts, text)
        if method == "replace":
            return self._replace(text, *args, **kwargs)
        return getattr(text, method)(*args, **kwargs)

    def _concatenate(self, parts: Iterable[Any], separator: str = "") -> str:
        texts, num_chars = [], 0
        for part in parts:
            texts.append(str(self.check(part)))
            num_chars += len(texts[-1]) + len(separator)
            self._budget.check_chars(num_chars)
        return separator.join(texts)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = (self.getitem(item, attribute) for item in value)
        return self._concatenate(value, str(d))

    def _replace(self, s: Any, old: str, new: str, count: int = -1) -> str:
        text = str(self.check(s))
        times = text.count(old) if count < 0 else min(text.count(old), count)
        self._budget.check_chars(len(text) + times * len(new))
        return text.replace(old, new, count)

    def _indent(self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        margin = width if isinstance(width, str) else " " * min(width, MAX_WIDTH)
        lines = str(self.check(s)).splitlines()
        self._budget.check_chars(sum(map(len, lines)) + len(lines) * (len(margin) + 1))
        indented = [margin + line if line or blank else line for line in lines]
        return "\n".join(indented if first else [*lines[:1], *indented[1:]])

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and not 0 <= indent <= 16:
            raise TemplateLimitError(f"it asked tojson for an indent of {indent}; the limit is 16")
        return json.dumps(
            self.check(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _ticking(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return rule(*args, **kwargs)

        return guarded


def _is_sized(value: object) -> bool:
    return isinstance(value, str | list | tuple)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _raise(message: object) -> NoReturn:
    raise TemplateRaisedError(str(message))

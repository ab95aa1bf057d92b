"""Small bugs for Python source: each mutant differs from the original in one place.

The place is found in the syntax tree and the change made in the text, so formatting and comments
stay and the reverse of the change is a readable patch. Only the bodies of functions are changed.
Not covered: bugs in several places, in class bodies or in annotations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_COMPARE = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is not": "is", "is": "is not", "not in": "in", "in": "not in",
}  # fmt: skip
_ARITHMETIC = {"+": "-", "-": "+", "*": "//", "//": "*", "/": "*", "%": "+"}
_BOOLEAN = {"and": "or", "or": "and"}


@dataclass(frozen=True)
class _Edit:
    """Replace the bytes [start, end) of the source."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Mutant:
    """One possible bug: `function` is the dotted name of the function it is in."""

    function: str
    line: int
    operator: str
    edit: _Edit

    def applied(self, source: str) -> str | None:
        """The text with the bug; None when that is no Python any more."""
        raw = source.encode()
        changed = raw[: self.edit.start] + self.edit.text.encode() + raw[self.edit.end :]
        try:
            ast.parse(changed)
        except SyntaxError:
            return None
        return changed.decode()


@dataclass(frozen=True)
class _Source:
    """UTF-8 text with the offsets of its lines; ast counts columns in bytes."""

    raw: bytes
    lines: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> _Source:
        raw = text.encode()
        starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", raw))]
        return cls(raw, tuple(starts))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None  # ast.parse sets both
        assert node.end_col_offset is not None
        start = self.lines[node.lineno - 1] + node.col_offset
        return start, self.lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def between(self, left: ast.expr, right: ast.expr, change: dict[str, str]) -> Iterator[_Edit]:
        """Change the operator that stands alone between two operands; brackets may be around."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.fullmatch(r"([\s)\\]*)(.*?)([\s(\\]*)", self.raw[start:end].decode(), re.DOTALL)
        if found is not None and (new := change.get(" ".join(found[2].split()))) is not None:
            before = start + len(found[1].encode())
            yield _Edit(before, before + len(found[2].encode()), new)


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of the text. Raises SyntaxError."""
    text = _Source.of(source)
    return [
        Mutant(name, node.lineno, operator, edit)
        for name, node in _nodes(ast.parse(source))
        for operator, edits in _OPERATORS.items()
        for edit in edits(node, text)
    ]


def _nodes(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    """(function name, node) for everything executable in function bodies."""

    def visit(node: ast.AST, name: str, inside: bool) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
            inside = not isinstance(node, ast.ClassDef)
            children: list[ast.AST] = [*node.body]  # no decorators, defaults, annotations
        else:
            if inside and isinstance(node, ast.expr | ast.stmt):
                yield name, node
            annotation = getattr(node, "annotation", None)
            children = [child for child in ast.iter_child_nodes(node) if child is not annotation]
        for child in children:
            if not _is_docstring(child):
                yield from visit(child, name, inside)

    return visit(tree, "", False)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _compare(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.Compare):
        for left, right in pairwise([node.left, *node.comparators]):
            yield from text.between(left, right, _COMPARE)


def _boolean(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.BoolOp) and len(node.values) == 2:
        yield from text.between(node.values[0], node.values[1], _BOOLEAN)


def _arithmetic(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.BinOp):
        yield from text.between(node.left, node.right, _ARITHMETIC)


def _constant(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield _Edit(*text.span(node), str(not node.value))
    elif isinstance(node.value, int):
        yield _Edit(*text.span(node), str(node.value + 1))


def _negation(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _Edit(text.span(node)[0], text.span(node.operand)[0], "")
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.UnaryOp):
        yield _Edit(*text.span(node.test), f"not ({text.text(node.test)})")


def _return(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.Return) and not (
        node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
    ):
        yield _Edit(*text.span(node), "return None")


def _arguments(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        first, second = node.args[:2]
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            (start, left_end), (right_start, end) = text.span(first), text.span(second)
            middle = text.raw[left_end:right_start].decode()
            yield _Edit(start, end, text.text(second) + middle + text.text(first))


def _statement(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield _Edit(*text.span(node), "pass")


def _jump(node: ast.AST, text: _Source) -> Iterator[_Edit]:
    if isinstance(node, ast.Break):
        yield _Edit(*text.span(node), "continue")
    elif isinstance(node, ast.Continue):
        yield _Edit(*text.span(node), "break")


_OPERATORS: dict[str, Callable[[ast.AST, _Source], Iterator[_Edit]]] = {
    "comparison": _compare,
    "boolean operator": _boolean,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "negation": _negation,
    "return value": _return,
    "swapped arguments": _arguments,
    "lost statement": _statement,
    "loop jump": _jump,
}

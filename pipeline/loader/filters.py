"""Filters of rows, written as expressions over columns: ``latent_t >= 15 and meta_aesthetic > 5``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class WhereError(ValueError):
    """A filter that does not parse, does not fit the columns' types, or names an unknown column."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on rows."""

    expression: pc.Expression
    columns: list[str]
    """Names of the columns that the condition reads, in the order of the table."""


def parse_where(text: str, schema: pa.Schema) -> Filter:
    """Parse a filter.

    A filter may contain columns, numbers, 'text', ``and or not``, ``== != < <= > >=``, ``in ('a', 'b')``, ``is None``,
    ``is not None`` and ``+ - * /``. A comparison with null is false. Raises WhereError.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise WhereError(f"filter '{text}' does not parse: {error.msg} at character {error.offset}") from error
    translator = _Translator(text, schema)
    expression = translator.visit(tree.body)
    if not isinstance(expression, pc.Expression):
        raise WhereError(f"filter '{text}' is a constant; compare columns instead: {', '.join(schema.names)}")
    try:
        schema.empty_table().filter(expression)
    except pa.ArrowException as error:
        raise WhereError(f"filter '{text}' does not fit the columns' types: {error}") from error
    return Filter(expression, [name for name in schema.names if name in translator.columns])


class _Translator(ast.NodeVisitor):
    """Turns a parsed filter into an Arrow expression and collects the columns that it names."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        self.schema = schema
        self.columns: set[str] = set()

    def generic_visit(self, node: ast.AST) -> Any:
        raise WhereError(f"filter '{self.text}': '{ast.unparse(node)}' is not supported")

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id not in self.schema.names:
            raise WhereError(
                f"filter '{self.text}': there is no column '{node.id}'; there are {', '.join(self.schema.names)}"
            )
        self.columns.add(node.id)
        return pc.field(node.id)

    def visit_Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int | float | str):
            self.generic_visit(node)
        return node.value

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return ~self.visit(node.operand)
        if isinstance(node.op, ast.USub):
            value = self.visit(node.operand)
            return pc.negate(value) if isinstance(value, pc.Expression) else -value
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        result = self.visit(node.values[0])
        for value in node.values[1:]:
            result = join(result, self.visit(value))
        return result

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if type(node.op) not in _ARITHMETIC:
            return self.generic_visit(node)
        return _ARITHMETIC[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> Any:
        result, left = None, node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self._compare(node, left, op, right)
            result = part if result is None else result & part
            left = right
        return result

    def _compare(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                return self.generic_visit(node)
            null = self.visit(left).is_null()
            return ~null if isinstance(op, ast.IsNot) else null
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List):
                return self.generic_visit(node)
            among = self.visit(left).isin([self.visit(value) for value in right.elts])
            return ~among if isinstance(op, ast.NotIn) else among
        return _COMPARISONS[type(op)](self.visit(left), self.visit(right))

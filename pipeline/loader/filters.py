"""Filters of rows, written as expressions over columns: ``latent_t >= 15 and meta_aesthetic > 5``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import dataset

ROW = "_row"
"""Column of row numbers, while rows are filtered."""
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
}


_SINGLE_EQUALS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[=!<>]=|=""")
"""Texts in quotes, comparisons, and single equals signs."""


class WhereError(ValueError):
    """A filter that does not parse, does not fit the columns' types, names an unknown column, or divides by zero."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on rows."""

    text: str
    expression: pc.Expression
    divisors: tuple[tuple[str, pc.Expression], ...] = ()
    """Divisors in the condition, each with its text."""

    def matching_rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that pass, in order. Only the columns that the condition names are read.

        Raises WhereError if a row divides by zero and the rest of the condition does not decide about it, or if a number
        becomes too large.
        """
        numbered = dataset.dataset(table.append_column(ROW, pa.array(np.arange(len(table)))))
        try:
            for text, divisor in self.divisors:
                undecided = numbered.count_rows(filter=(divisor == 0.0) & self.expression.is_null())
                if undecided:
                    raise WhereError(
                        f"filter '{self.text}' divides by zero: '{text}' is 0 in {undecided} rows. "
                        f"Leave them out first: {text} != 0 and ..."
                    )
            rows: npt.NDArray[np.int64] = numbered.to_table(columns=[ROW], filter=self.expression)[ROW].to_numpy()
        except pa.ArrowException as error:
            raise WhereError(f"filter '{self.text}' cannot be computed: {error}") from error
        return rows


def make_filter(where: str | pc.Expression, schema: pa.Schema) -> Filter:
    """Return the filter of a text or of an Arrow expression over the columns. Raises WhereError."""
    if isinstance(where, str):
        return parse_where(where, schema)
    if not isinstance(where, pc.Expression):
        raise WhereError(f"where must be a text or a pyarrow.compute.Expression, got {type(where).__name__}")
    _check_types(str(where), where, schema)
    return Filter(str(where), where)


def parse_where(text: str, schema: pa.Schema) -> Filter:
    """Parse a filter.

    A filter may contain columns, numbers, 'text', ``and or not``, ``== != < <= > >=``, ``in ('a', 'b')``, ``is None``,
    ``is not None`` and ``+ - * /``. ``=`` means ``==``. Integers are computed with 64 bits, and ``/`` gives fractions as
    in Python. A comparison with null is false. Raises WhereError.
    """
    try:
        tree = ast.parse(
            _SINGLE_EQUALS.sub(lambda match: match[0] + "=" * (match[0] == "="), text.strip()), mode="eval"
        )
    except SyntaxError as error:
        raise WhereError(f"filter '{text}' does not parse: {error.msg} at character {error.offset}") from error
    translator = _Translator(text, schema)
    expression = translator.visit(tree.body)
    if not isinstance(expression, pc.Expression):
        raise WhereError(f"filter '{text}' is a constant; compare columns instead: {', '.join(schema.names)}")
    _check_types(text, expression, schema)
    return Filter(text, expression, tuple(translator.divisors))


def _check_types(text: str, expression: pc.Expression, schema: pa.Schema) -> None:
    try:
        schema.empty_table().filter(expression)
    except pa.ArrowException as error:
        raise WhereError(f"filter '{text}' does not fit the columns' types: {error}") from error


class _Translator(ast.NodeVisitor):
    """Turns a parsed filter into an Arrow expression and collects what it divides by."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        self.schema = schema
        self.divisors: list[tuple[str, pc.Expression]] = []

    def generic_visit(self, node: ast.AST) -> Any:
        raise WhereError(f"filter '{self.text}': '{ast.unparse(node)}' is not supported")

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id not in self.schema.names:
            raise WhereError(
                f"filter '{self.text}': there is no column '{node.id}'; there are {', '.join(self.schema.names)}"
            )
        column, column_type = pc.field(node.id), self.schema.field(node.id).type
        if pa.types.is_uint64(column_type):
            return _as_float(column)
        return column.cast(pa.int64()) if pa.types.is_integer(column_type) else column

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
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Div):
            return self._divide(left, right, ast.unparse(node.right))
        if type(node.op) not in _ARITHMETIC:
            return self.generic_visit(node)
        return _ARITHMETIC[type(node.op)](left, right)

    def _divide(self, left: Any, right: Any, divisor: str) -> Any:
        """Divide as Python does: fractions for integers too. Null where the divisor is 0, so that the rest may decide."""
        if not isinstance(right, pc.Expression):
            if right == 0:
                raise WhereError(f"filter '{self.text}' divides by zero")
            return left / right if not isinstance(left, pc.Expression) else _as_float(left) / float(right)
        left = _as_float(left) if isinstance(left, pc.Expression) else pc.scalar(float(left))
        right = _as_float(right)
        self.divisors.append((divisor, right))
        return left / pc.if_else(right == 0.0, pa.scalar(None, pa.float64()), right)

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


def _as_float(number: pc.Expression) -> pc.Expression:
    return number.cast(pa.float64(), safe=False)

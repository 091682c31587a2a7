"""A module's mutants: its source with one small fault each, made by cosmic-ray, and by two rules of our own."""

import ast
import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

# One or two replacements of each kind of expression; cosmic-ray's full set has 11 for every +, which say the same.
OPERATORS = [
    "core/AddNot",
    "core/NumberReplacer",
    "core/RemoveDecorator",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceTrueWithFalse",
    "core/ZeroIterationForLoop",
    *(
        f"core/ReplaceBinaryOperator_{pair}"
        for pair in (
            *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul"),
            *("BitAnd_BitOr", "BitOr_BitAnd"),
        )
    ),
    *(
        f"core/ReplaceComparisonOperator_{pair}"
        for pair in (
            *("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt"),
            *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
        )
    ),
    *(f"core/ReplaceUnaryOperator_Delete_{name}" for name in ("Invert", "Not", "USub")),
]

Place = tuple[int, int]


class Mutant(NamedTuple):
    """A module with one fault.

    Attributes:
        line: where the fault is.
        function: the dotted name of the function around it; "" outside of functions.
        operator: the rule that made it.
        before, after: the lines that differ.
        source: the whole module.
    """

    line: int
    function: str
    operator: str
    before: str
    after: str
    source: str

    @property
    def identity(self) -> tuple[str, str, str]:
        """What stays the same if lines are added elsewhere."""
        return self.function, self.before, self.after


def mutants(source: str) -> list[Mutant]:
    """Return the mutants of a module by line: all that differ from it and from each other and can be compiled."""
    tree = ast.parse(source)
    notes = list(_annotations(tree))
    found: dict[str, tuple[int, str]] = {}
    for operator, place, mutated in [*_by_cosmic_ray(source), *_left_out(tree, source), *_tenth_less(tree, source)]:
        if mutated != source and _compiles(mutated) and not any(begin <= place < end for begin, end in notes):
            found.setdefault(mutated, (place[0], operator))
    made = [
        Mutant(line, _function(tree, line), operator, *_difference(source, mutated), mutated)
        for mutated, (line, operator) in found.items()
    ]
    return sorted(made, key=lambda mutant: mutant.line)


def _by_cosmic_ray(source: str) -> Iterator[tuple[str, Place, str]]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(name)()
        places = [begin for node in nodes for begin, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if mutated := mutate_code(source, operator, occurrence):
                yield name, place, mutated


def _left_out(tree: ast.Module, source: str) -> Iterator[tuple[str, Place, str]]:
    """a + b, a * b and the like without a, and without b: a term or a factor that was forgotten."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            for operand in (node.left, node.right):
                yield "own/LeaveOut", _begin(node), _replaced(source, node, f"({_text(source, operand)})")


def _tenth_less(tree: ast.Module, source: str) -> Iterator[tuple[str, Place, str]]:
    """Nine tenths of what a function of numbers returns: a result of the right kind that is somewhat wrong."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or not function.returns:
            continue
        if not re.match(r"(Float\[|float$|np\.ndarray$|Tensor$)", ast.unparse(function.returns)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value:
                yield (
                    "own/TenthLess",
                    _begin(node),
                    _replaced(source, node.value, f"0.9 * ({_text(source, node.value)})"),
                )


def _annotations(tree: ast.Module) -> Iterator[tuple[Place, Place]]:
    """Where types stand, which do nothing when the code runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            yield _begin(node), _end(node)
        for name in ("annotation", "returns"):
            if kind := getattr(node, name, None):
                yield _begin(kind), _end(kind)


def _begin(node: ast.expr | ast.stmt) -> Place:
    return node.lineno, node.col_offset


def _end(node: ast.expr | ast.stmt) -> Place:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _text(source: str, node: ast.expr) -> str:
    text = ast.get_source_segment(source, node)
    assert text is not None
    return text


def _replaced(source: str, node: ast.expr, text: str) -> str:
    """The source with other text for an expression. Places count bytes."""
    lines = source.encode().splitlines(keepends=True)
    (first, begin), (last, end) = _begin(node), _end(node)
    inside = lines[first - 1][:begin] + text.encode() + lines[last - 1][end:]
    return b"".join([*lines[: first - 1], inside, *lines[last:]]).decode()


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _function(tree: ast.Module, line: int) -> str:
    name, found, body = "", "", tree.body
    while inner := next((node for node in body if _holds(node, line)), None):
        assert isinstance(inner, ast.FunctionDef | ast.ClassDef)
        name, body = f"{name}.{inner.name}".lstrip("."), inner.body
        found = name if isinstance(inner, ast.FunctionDef) else ""
    return found


def _holds(node: ast.stmt, line: int) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return False
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) <= line <= _end(node)[0]


def _difference(source: str, mutated: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(source.splitlines(), mutated.splitlines()))
    return tuple(" ".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))

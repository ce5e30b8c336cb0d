"""The mutants of a file: cosmic-ray's changes of operators and constants, and two of our own."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import parso.python.tree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

DROPPED = {"atom_expr", "expr_stmt", "return_stmt"}
NAMES = {"name", "testlist_star_expr"}


class DropStatement(Operator):
    """A call, a return or a change of an attribute or item in a function becomes `pass`.

    Without `name = ...` a name is missing: any test notices that.
    """

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and node.search_ancestor("funcdef"):
            statement = node.children[0]
            names = statement.type == "expr_stmt" and statement.children[0].type in NAMES
            if statement.type in DROPPED and (not names or statement.children[1] != "="):
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        prefix = node.get_first_leaf().prefix
        node.children[0] = parso.python.tree.Keyword("pass", node.start_pos, prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class ScaleNumber(Operator):
    """A fraction is a tenth smaller: cosmic-ray adds or subtracts 1, which few tests miss."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "number" and isinstance(_value(node), float) and _value(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        number = f"{0.9 * _value(node):.12g}"
        return parso.python.tree.Number(number, node.start_pos, node.prefix)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _value(node: Any) -> Any:
    return ast.literal_eval(node.value)


# Of cosmic-ray's operators, those whose mutants are not all alike: any wrong use of << is noticed.
COSMIC_RAY = """
NumberReplacer AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd
ZeroIterationForLoop ReplaceUnaryOperator_USub_UAdd ReplaceUnaryOperator_Delete_Not
ReplaceBinaryOperator_Add_Sub ReplaceBinaryOperator_Sub_Add ReplaceBinaryOperator_Mul_Div
ReplaceBinaryOperator_Div_Mul ReplaceBinaryOperator_FloorDiv_Mul ReplaceBinaryOperator_Mod_FloorDiv
ReplaceBinaryOperator_Pow_Mul ReplaceComparisonOperator_Eq_NotEq ReplaceComparisonOperator_NotEq_Eq
ReplaceComparisonOperator_Lt_LtE ReplaceComparisonOperator_Lt_GtE ReplaceComparisonOperator_LtE_Lt
ReplaceComparisonOperator_LtE_Gt ReplaceComparisonOperator_Gt_GtE ReplaceComparisonOperator_Gt_LtE
ReplaceComparisonOperator_GtE_Gt ReplaceComparisonOperator_GtE_Lt ReplaceComparisonOperator_Is_IsNot
ReplaceComparisonOperator_IsNot_Is
""".split()


LEFT_OUT = ("raise_stmt", "annassign", "tfpdef", "decorator")


def operators() -> list[Operator]:
    return [
        DropStatement(),
        ScaleNumber(),
        *(get_operator(f"core/{name}")() for name in COSMIC_RAY),
    ]


@dataclass(frozen=True)
class Mutant:
    """A file with a change."""

    path: str
    line: int
    before: str  # the first line that differs
    after: str
    source: str  # the whole file

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def mutants(path: str, source: str, order: random.Random) -> Iterator[Mutant]:
    """All mutants of a file in a random order, those of messages and annotations left out."""
    kinds = operators()
    occurrences = [0] * len(kinds)
    places = []
    for node in ast_nodes(get_ast(source)):
        left_out = any(node.type == kind or node.search_ancestor(kind) for kind in LEFT_OUT)
        for number, operator in enumerate(kinds):
            for _ in operator.mutation_positions(node):
                if not left_out:
                    places.append((operator, occurrences[number]))
                occurrences[number] += 1
    order.shuffle(places)
    seen = {source}
    for operator, occurrence in places:
        text = mutate_code(source, operator, occurrence)
        if text and text not in seen and _compiles(text):
            seen.add(text)
            yield _mutant(path, source, text)


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _mutant(path: str, source: str, text: str) -> Mutant:
    pairs = zip(source.splitlines(), text.splitlines(), strict=False)
    lines = enumerate(pairs, 1)
    line, (before, after) = next(item for item in lines if item[1][0] != item[1][1])
    return Mutant(path, line, before.strip(), after.strip(), text)


def sample(files: dict[str, str], count: int, seed: int) -> Iterator[Mutant]:
    """Mutants of each file in turn, in an order by the seed: a larger sample holds a smaller one.

    Args:
        files: the text of each, by its path.
    """
    paths = sorted(files)
    random.Random(seed).shuffle(paths)
    left = [mutants(path, files[path], random.Random(f"{seed} {path}")) for path in paths]
    while left:
        for source in list(left):
            mutant = next(source, None)
            if mutant is None:
                left.remove(source)
            elif count <= 0:
                return
            else:
                count -= 1
                yield mutant

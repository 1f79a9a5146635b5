"""Makes the mutants of a module: mutmut's operators, and four of our own, over every line of it.

mutmut's own runner leaves out `__new__`, decorated functions, class bodies and the tables of a module. Here a parser
is a `__new__` and a rule is a line of a table, so only its operators are taken, and the walk through the syntax tree
is ours. Left out: annotations, decorators, docstrings, imports, `__all__`, the arguments of `len` and `isinstance`
(as mutmut does), and sentences for people, which tests do not assert.

What is not here: running anything.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

__all__ = ["Mutant", "mutants_of"]

Operator = tuple[type, Callable[[cst.CSTNode], Iterable[cst.CSTNode]]]

_PROSE_KEYWORDS = frozenset(("fix", "message"))
_PROSE_NAMES = frozenset(("_FIX", "why", "message"))
# Python takes either case of the first, and the last without being told: no test could tell.
_SPELLINGS = frozenset(('"utf-8"', '"ascii"', '"latin-1"', '"utf-16-le"', '"utf-16-be"', '"big"'))
_HEX = re.compile('"[0-9a-f]{6,}"')
_LEFT_ALONE = frozenset(("len", "isinstance", "cast", "TypeVar", "NewType"))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module. `function` is the qualified name of the outermost function, empty outside of any."""

    path: Path
    module: str
    original: str
    number: int
    operator: str
    function: str
    first_line: int
    last_line: int
    start: int
    end: int
    text: str

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.module}#{self.number}"

    def source(self) -> str:
        """The whole module with the change in it."""
        return self.original[: self.start] + self.text + self.original[self.end :]

    def diff(self) -> str:
        """What it changes, as a unified diff."""
        before, after = self.original.splitlines(), self.source().splitlines()
        lines = difflib.unified_diff(before, after, self.module, self.module, n=2, lineterm="")
        return "\n".join(lines)

    def change(self) -> str:
        """What it changes, on one line: `before` -> `after`."""
        changed = [line for line in self.diff().splitlines()[2:] if line[:1] in "+-"]
        before = " ".join(line[1:].strip() for line in changed if line[0] == "-")
        after = " ".join(line[1:].strip() for line in changed if line[0] == "+")
        return f"`{before}` -> `{after}`"


def mutants_of(path: Path, module: str) -> list[Mutant]:
    """Return every mutant of a module that compiles and is not the same program."""
    source = path.read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    walk = _Walk(wrapper.module, source)
    wrapper.visit(walk)
    tree, seen, mutants = ast.dump(ast.parse(source)), set(), []
    for change in walk.changes:
        changed = source[: change.start] + change.text + source[change.end :]
        if changed in seen or not _is_another_program(changed, tree):
            continue
        seen.add(changed)
        mutants.append(
            Mutant(
                path,
                module,
                source,
                len(mutants) + 1,
                change.operator,
                change.function,
                change.first_line,
                change.last_line,
                change.start,
                change.end,
                change.text,
            )
        )
    return mutants


def _is_another_program(source: str, tree: str) -> bool:
    try:
        return ast.dump(ast.parse(source)) != tree
    except SyntaxError:
        return False


# Operators that mutmut does not have: a verifier is made of statements and conditions.


def _drop_statement(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Raise) or (isinstance(node, cst.Expr) and isinstance(node.value, cst.Call)):
        yield cst.Pass()


def _negate_condition(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Name | cst.Attribute | cst.Call | cst.Subscript):
        yield cst.UnaryOperation(cst.Not(), node, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _drop_operand(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.BooleanOperation):
        for operand in (node.left, node.right):
            yield operand.with_changes(lpar=[cst.LeftParen(), *operand.lpar], rpar=[*operand.rpar, cst.RightParen()])


def _other_edge(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """mutmut moves an edge by one and never turns a comparison round."""
    turned = {
        cst.LessThan: cst.GreaterThanEqual,
        cst.LessThanEqual: cst.GreaterThan,
        cst.GreaterThan: cst.LessThanEqual,
        cst.GreaterThanEqual: cst.LessThan,
    }
    if type(node) in turned:
        yield turned[type(node)]()


_OPERATORS: tuple[Operator, ...] = (
    *((kind, operator) for kind, operator in mutation_operators),
    (cst.BaseSmallStatement, _drop_statement),
    (cst.BooleanOperation, _drop_operand),
    (cst.BaseCompOp, _other_edge),
)


@dataclass(frozen=True, slots=True)
class _Change:
    operator: str
    function: str
    first_line: int
    last_line: int
    start: int
    end: int
    text: str


class _Walk(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self, module: cst.Module, source: str) -> None:
        super().__init__()
        self.changes: list[_Change] = []
        self._module = module
        self._offsets = [0]
        for line in source.splitlines(keepends=True):
            self._offsets.append(self._offsets[-1] + len(line))
        self._scopes: list[tuple[str, bool]] = []
        self._functions: list[str] = []
        self._told = _told_parameters(module)
        self._prose: set[int] = set()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if id(node) in self._prose or _is_left_alone(node):
            return False
        if isinstance(node, cst.Call):
            self._prose.update(id(argument) for argument in self._prose_arguments(node))
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._scopes.append((node.name.value, isinstance(node, cst.FunctionDef)))
        if isinstance(node, cst.BaseSuite) and self._in_function_header():
            self._functions.append(_qualified(self._scopes))
        self._mutate(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.BaseSuite) and self._functions and self._is_body(original_node):
            self._functions.pop()
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._scopes.pop()

    def _in_function_header(self) -> bool:
        return bool(self._scopes) and self._scopes[-1][1] and len(self._functions) < sum(f for _, f in self._scopes)

    def _is_body(self, suite: cst.CSTNode) -> bool:
        return isinstance(self.get_metadata(ParentNodeProvider, suite), cst.FunctionDef)

    def _mutate(self, node: cst.CSTNode) -> None:
        for kind, operator in _OPERATORS:
            if isinstance(node, kind):
                self._record(node, operator.__name__, operator(node))
        if isinstance(node, cst.If | cst.While | cst.IfExp):
            self._record(node.test, "negate_condition", _negate_condition(node.test))

    def _record(self, node: cst.CSTNode, operator: str, mutated: Iterable[cst.CSTNode]) -> None:
        span = self.get_metadata(PositionProvider, node, None)
        if span is None or _is_prose(node):
            return
        for replacement in mutated:
            if (
                isinstance(node, cst.Call)
                and isinstance(replacement, cst.Call)
                and self._drops_prose(node, replacement)
            ):
                continue
            self.changes.append(
                _Change(
                    operator.strip("_").removeprefix("operator_"),
                    self._functions[0] if self._functions else "",
                    span.start.line,
                    span.end.line,
                    self._offsets[span.start.line - 1] + span.start.column,
                    self._offsets[span.end.line - 1] + span.end.column,
                    self._module.code_for_node(replacement),
                )
            )

    def _prose_arguments(self, call: cst.Call) -> Iterator[cst.Arg]:
        told = self._told.get(call.func.value, frozenset()) if isinstance(call.func, cst.Name) else frozenset()
        for index, argument in enumerate(call.args):
            if (
                index in told
                or _is_prose(argument.value)
                or (argument.keyword is not None and argument.keyword.value in _PROSE_KEYWORDS)
            ):
                yield argument

    def _drops_prose(self, call: cst.CSTNode, mutated: cst.CSTNode) -> bool:
        if not isinstance(call, cst.Call) or not isinstance(mutated, cst.Call):
            return False
        kept = {id(argument) for argument in mutated.args}
        return any(id(argument) not in kept for argument in self._prose_arguments(call))


def _told_parameters(module: cst.Module) -> dict[str, frozenset[int]]:
    """The parameters of each function that are only ever told to people, by their position."""
    return {
        function.name.value: frozenset(
            index
            for index, parameter in enumerate(function.params.params)
            if _is_only_told(function.body, parameter.name.value)
        )
        for function in module.body
        if isinstance(function, cst.FunctionDef)
    }


def _is_only_told(body: cst.CSTNode, name: str) -> bool:
    if name in _PROSE_NAMES:
        return True
    sentences = m.findall(body, m.FormattedString())
    told = sum(len(m.findall(sentence, m.Name(name))) for sentence in sentences)
    return 0 < told == len(m.findall(body, m.Name(name)))


def _qualified(scopes: list[tuple[str, bool]]) -> str:
    """As `co_qualname` has it, up to the outermost function."""
    names = []
    for name, is_function in scopes:
        names.append(name)
        if is_function:
            break
    return ".".join(names)


def _is_left_alone(node: cst.CSTNode) -> bool:
    match node:
        case cst.Annotation() | cst.Decorator() | cst.Import() | cst.ImportFrom() | cst.FormattedString():
            return True
        case cst.ConcatenatedString() | cst.Assert():
            return True
        case cst.Call(func=cst.Name(value=name)):
            return name in _LEFT_ALONE
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value="__all__"))]):
            return True
        case cst.AnnAssign(annotation=cst.Annotation(annotation=cst.Name(value="TypeAlias"))):
            return True
        case cst.Expr(value=cst.BaseString()):
            return True
    return False


def _is_other_case(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Whether it is the same number in hexadecimal."""
    match node, mutated:
        case cst.SimpleString(value=before), cst.SimpleString(value=after):
            return _HEX.fullmatch(before) is not None and after.lower() == before
    return False


def _is_prose(node: cst.CSTNode) -> bool:
    """Whether it is a sentence for a person or carries one, or is a string that no test could tell from another."""
    match node:
        case cst.FormattedString() | cst.ConcatenatedString():
            return True
        case cst.SimpleString(value=value) if value in _SPELLINGS:
            return True
        case cst.SimpleString(value=value):
            return " " in value and "b" not in value[: value.index(value[-1])].lower()
        case cst.Name(value=name):
            return name in _PROSE_NAMES
        case cst.Attribute(attr=cst.Name(value="message")):
            return True
        case cst.Assign(value=value) | cst.AnnAssign(value=value) if value is not None:
            return _is_prose(value)
    return False

"""Arguments of a class or function, read from its source text: importing it would import torch or pandas with it."""

import ast
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text",
    "list": "a list [a,b]", "dict": "a mapping {a:b}", "null": "null",
}  # fmt: skip
_NAMES = {
    "bool": "bool", "int": "int", "float": "float", "str": "str", "Path": "str", "None": "null", "list": "list",
    "List": "list", "tuple": "list", "Sequence": "list", "Iterable": "list", "Collection": "list", "dict": "dict",
    "Dict": "dict", "Mapping": "dict",
}  # fmt: skip

Kind = str | tuple[str, object]  # a type, or the type and value of one choice of a Literal
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """One argument: what a yaml value for it may be (``kinds`` None: anything), and whether it must be given."""

    kinds: frozenset[Kind] | None
    required: bool

    def allows(self, value: object) -> bool:
        """Whether a plain yaml value is of a type, or one of the choices, that the annotation admits."""
        if self.kinds is None:
            return True
        kind = "null" if value is None else type(value).__name__
        if kind in self.kinds or (kind == "int" and "float" in self.kinds):
            return True
        return any((kind, value) == choice for choice in self.kinds)

    def choices(self) -> list[str]:
        """The values that a Literal lists, as text."""
        return sorted(str(choice[1]) for choice in self.kinds or () if isinstance(choice, tuple))

    def wanted(self) -> str:
        """The admitted choices and types in plain words."""
        kinds = (self.kinds or frozenset()) - ({"int"} if "float" in (self.kinds or ()) else set())
        return " or ".join([*self.choices(), *(_WORDS[kind] for kind in _WORDS if kind in kinds)])


@functools.cache
def arguments(file: Path, name: str) -> dict[str, Argument] | None:
    """Arguments of the class ``name`` defined in ``file``, its bases' where it has no ``__init__`` of its own.

    Returns None when the file does not define such a class.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return None
    for node in classes[name].body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return dict(_of_function(node))
    for base in classes[name].bases:
        if not isinstance(base, ast.Name):
            continue
        found = arguments(file, base.id) if base.id in classes else _imported(tree, file, base.id)
        if found is not None:
            return found
    return {}


@functools.cache
def function_arguments(file: Path, name: str) -> dict[str, Argument] | None:
    """Arguments of the function ``name`` at the top of ``file``; None when it defines none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return dict(_of_function(found[0])) if found else None


@functools.cache
def requirements(file: Path, name: str) -> list[tuple[str, Callable[[object], bool], str]]:
    """What the function ``name`` of ``file`` asks of single arguments: name, whether a value will do, what will do.

    Read from its own ``require(0 <= density <= 1, "density", density, "a number from 0 to 1")``, so that a bound
    stands once. Conditions that call something or look at other arguments are left to the function.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: list[tuple[str, Callable[[object], bool], str]] = []
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name != name:
            continue
        for line in function.body:
            match line:
                case ast.Expr(
                    ast.Call(
                        ast.Name("require"), [condition, ast.Constant(str(key)), ast.Name(), ast.Constant(str(told))]
                    )
                ) if _plain(condition, key):
                    found.append((key, functools.partial(_holds, condition), told))
    return found


def class_names(file: Path) -> list[str]:
    """Names of the public classes that a module defines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def _imported(tree: ast.Module, file: Path, name: str) -> dict[str, Argument] | None:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            other = file.parents[1] / (node.module.replace(".", "/") + ".py")
            return arguments(other, name) if other.is_file() else None
    return None


def _of_function(node: ast.FunctionDef) -> Iterator[tuple[str, Argument]]:
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [
        *zip(plain, defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if argument.arg == "self":
            continue
        kinds = _kinds(argument.annotation) if argument.annotation is not None else None
        if kinds is not None and isinstance(default, ast.Constant) and default.value is None:
            kinds = kinds | {"null"}
        yield argument.arg, Argument(frozenset(kinds) if kinds else None, required=default is None)


def _kinds(node: Any) -> set[Kind] | None:
    """Kinds of an annotation; empty for a class that no yaml value can be, None where anything may be meant."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _kinds(ast.parse(node.value, mode="eval").body)
        return {"null"} if node.value is None else None
    if isinstance(node, ast.Attribute):
        return _kinds(ast.Name(node.attr))
    if isinstance(node, ast.Name):
        if node.id in _NAMES:
            return {_NAMES[node.id]}
        # a private name or Any stands for an alias whose meaning is not looked up
        return None if node.id == "Any" or node.id.startswith("_") else set()
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right])
    if isinstance(node, ast.Subscript):
        outer = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Literal":
            values = [item.value for item in inner if isinstance(item, ast.Constant)]
            return {"null" if value is None else (type(value).__name__, value) for value in values}
        if outer in ("Optional", "Union"):
            found = _union(inner)
            return found | {"null"} if found is not None and outer == "Optional" else found
        return _kinds(ast.Name(outer))
    return None


def _plain(condition: ast.expr, key: str) -> bool:
    """Whether a condition compares the argument ``key`` with constants and nothing else."""
    known = (ast.BoolOp, ast.boolop, ast.Compare, ast.Name, ast.expr_context, ast.Constant, *_COMPARED)
    nodes = list(ast.walk(condition))
    return all(isinstance(node, known) for node in nodes) and {n.id for n in nodes if isinstance(n, ast.Name)} == {key}


def _holds(condition: ast.expr, value: Any) -> bool:
    """A ``_plain`` condition of a value."""
    match condition:
        case ast.BoolOp(joined, parts):
            return (all if isinstance(joined, ast.And) else any)(_holds(part, value) for part in parts)
        case ast.Compare(first, compared, others):
            sides = [side.value if isinstance(side, ast.Constant) else value for side in (first, *others)]
            return all(
                _COMPARED[type(how)](left, right)
                for how, left, right in zip(compared, sides[:-1], sides[1:], strict=True)
            )
    return bool(value)


def _union(nodes: list[Any]) -> set[Kind] | None:
    found = [_kinds(node) for node in nodes]
    return None if any(kinds is None for kinds in found) else set().union(*(kinds for kinds in found if kinds))

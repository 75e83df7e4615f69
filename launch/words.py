"""Pydantic's errors in plain words, with the dotted key, the value and what is allowed."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from launch.checks import known, show
from launch.errors import nearest


def in_words(schema: type[BaseModel], detail: ErrorDetails, config: dict[str, Any]) -> tuple[str, str]:
    """Dotted key and sentence for one error.

    Args:
        schema: the model that refused ``config``.
        detail: one of the error's details; its location may go on below a field (list items, members of a union).
        config: plain dict that was refused.
    """
    path = field_path(schema, detail["loc"])
    if detail["type"] == "extra_forbidden":
        return ".".join(path), unknown_key(schema, path, detail["input"])
    key = ".".join(path)
    if detail["type"] == "missing":
        return key, missing(schema, key)
    value: Any = config
    for part in path:
        value = value[part]
    field = find_field(schema, path)
    if key == "name" and value is None:
        return key, missing(schema, key)
    options = [option for option in _options(field.annotation) if option] if field else []
    text = f"{key}={show(value)}: must be {described(schema, key)}."
    if value in options:  # one, where a list of them is asked for
        return key, f"{text} Did you mean '[{value}]'?"
    return key, text + (nearest(value, options) if isinstance(value, str) else "")


def missing(schema: type[BaseModel], key: str) -> str:
    """The sentence for a value that must be given."""
    if key == "data._target_":
        field = find_field(schema, ["data"])
        if field is not None and field.description:
            return f"data is missing: give {field.description}."
        return (
            "data is missing: this task has no dataset of its own; give data=image_folder, data=image_csv or another."
        )
    if key == "data.root":
        return "data.root is missing: give data.root=DIR, the folder of the dataset."
    if key == "name":
        return "name is missing: this task has no name of its own; give name=..., a name of a-z, 0-9 and _."
    wanted = described(schema, key)
    return f"{key} is missing: give {key}=..." + (f", {wanted}." if wanted else ".")


def unknown_key(schema: type[BaseModel], path: list[str], value: Any) -> str:
    """The sentence for a key that no section has: the nearest of its section, else the section that does have it."""
    *parents, last = path
    names = [alias for alias, _ in _fields(section(schema, parents))]
    prefix = "".join(f"{parent}." for parent in parents)
    near = nearest(last, names)
    hint = near.replace("'", f"'{prefix}", 1)
    if not hint:
        elsewhere = [key for key in all_keys(schema) if key.rpartition(".")[2] == last]
        hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else ""
    if not hint:
        hint = f" Known{' in ' + '.'.join(parents) if parents else ''}: {known(names)}."
    return f"{'.'.join(path)}={show(value)}: unknown key.{hint}"


def described(schema: type[BaseModel], key: str) -> str:
    """What a key may be: its field's description."""
    field = find_field(schema, key.split("."))
    if field is None:
        return ""
    if field.description is None and isinstance(model := _model(field.annotation), type):
        return f"a section with {', '.join(alias for alias, _ in _fields(model))}"
    return field.description or ""


def field_path(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The part of a location that names fields; the rest are list items and members of unions."""
    path: list[str] = []
    annotation: Any = schema
    for part in location:
        if not isinstance(part, str) or (_model(annotation) is None and _mapped(annotation) is None):
            break
        path.append(part)
        annotation = _below(annotation, part)
    return path


def find_field(schema: type[BaseModel], path: list[str]) -> FieldInfo | None:
    """The field that a path names."""
    parent = section(schema, path[:-1])
    return dict(_fields(parent)).get(path[-1]) if parent else None


def section(schema: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model that holds the fields below a path."""
    annotation: Any = schema
    for part in path:
        annotation = _below(annotation, part)
    return _model(annotation)


def all_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for alias, field in _fields(schema):
        yield prefix + alias
        model = _model(field.annotation)
        if model is not None:
            yield from all_keys(model, f"{prefix}{alias}.")


def _fields(model: type[BaseModel] | None) -> list[tuple[str, FieldInfo]]:
    return [(field.alias or name, field) for name, field in model.model_fields.items()] if model else []


def _model(annotation: Any) -> type[BaseModel] | None:
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((item for item in members if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _mapped(annotation: Any) -> type[BaseModel] | None:
    """The model that a mapping from names holds."""
    arguments = typing.get_args(annotation)
    return _model(arguments[1]) if typing.get_origin(annotation) is dict else None


def _below(annotation: Any, part: str) -> Any:
    """The annotation of a model's field, or of a mapping's values."""
    if (mapped := _mapped(annotation)) is not None:
        return mapped
    field = dict(_fields(_model(annotation))).get(part)
    return field.annotation if field else None


def _options(annotation: Any) -> list[str]:
    """The texts that a Literal, or a union or list of them, admits."""
    if typing.get_origin(annotation) is typing.Literal:
        return [option for option in typing.get_args(annotation) if isinstance(option, str)]
    return [option for member in typing.get_args(annotation) for option in _options(member)]

"""Settings: frozen pydantic models, read from YAML, changed by dotted `--set a.b=c`, all problems at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from chatwright.errors import ConfigError, not_utf8

T = TypeVar("T", bound="Settings")


class Settings(BaseModel):
    """Base of every settings class: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_answer_for_a_number(cls, data: Any) -> Any:
        """`true` isn't 1."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            kinds = (get_args(field.annotation) or (field.annotation,)) if field is not None else (bool,)
            if isinstance(value, bool) and set(kinds) <= {int, float, type(None)}:
                raise ValueError(f"{name} must be a number (found {str(value).lower()})")
        return data

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        """Every text can be written as UTF-8: into a recipe, a key or a training row."""
        for text in _texts(value):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = f"holds half a character ({text[error.start]!r}) that UTF-8 can't write"
                raise ValueError(f"{half}; a \\ud800–\\udfff escape must come in pairs") from None
        return value


def _texts(value: Any) -> Iterator[str]:
    """The strings in a plain value, keys included; settings inside it check their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: `1e-6` is a float, as every user of learning rates expects."""


_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+|(?:\d[\d_]*)?\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*\.|\.(?:inf|Inf|INF|nan|NaN|NAN))$"
)
_FLOAT_TAG = "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in rules if tag != _FLOAT_TAG]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))


_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)
"""What PyYAML lets out for 2024-99-99, `!!int` of nothing, integers of thousands of digits."""


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of YAML text, refusing what PyYAML takes without a word.

    Raises:
        yaml.YAMLError: text that can't be parsed, a key that stands twice in one mapping, aliases that lead back to
            themselves or that grow the text more than tenfold, nesting beyond reason, numbers and dates that are none.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        _weigh(node, {}, 10 * len(text) + 1000)
        return reader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    except _UNREADABLE as error:
        raise yaml.YAMLError(f"holds a value that can't be read: {str(error)[:120]}") from None
    finally:
        reader.dispose()


def _weigh(node: yaml.Node, weights: dict[int, int], most: int) -> int:
    """How many nodes the value has once its aliases are written out; 0 while a node is being weighed."""
    if id(node) in weights:
        weight = weights[id(node)]
        if not weight:
            raise yaml.MarkedYAMLError(problem="an alias leads back to itself", problem_mark=node.start_mark)
        return weight
    weights[id(node)], weight = 0, 1
    if isinstance(node, yaml.MappingNode):
        _require_own_keys(node)
        weight += sum(_weigh(key, weights, most) + _weigh(value, weights, most) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        weight += sum(_weigh(item, weights, most) for item in node.value)
    if weight > most:
        raise yaml.MarkedYAMLError(problem="its aliases repeat too much", problem_mark=node.start_mark)
    weights[id(node)] = weight
    return weight


def _require_own_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
        if name is not None and name in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark)
        if name is not None:
            seen.add(name)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text.

    Raises:
        ConfigError: naming the line that can't be parsed.
    """
    try:
        return load_yaml(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError([f"{where}{getattr(error, 'problem', None) or error}"], source=source) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: if it can't be read, can't be parsed or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"can't be read: {error}"], source=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{not_utf8(error)}: save the file as UTF-8"], source=str(path)) from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError([f"must be a mapping of settings, found {type(data).__name__}"], source=str(path))
    return data


def dump_yaml(settings: Settings, *, only_changed: bool = False) -> str:
    """The settings as YAML: every default written out, or only what differs from the defaults."""
    data = settings.model_dump(mode="json", exclude_defaults=only_changed)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set; values are parsed as YAML, list items by number.

    Raises:
        ConfigError: naming every override that has no `=` or that walks through a plain value.
    """
    result: dict[str, Any] = _deep_copy(dict(data))
    problems: list[str] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            problems.append(f"{override!r}: write it as name=value, such as optimizer.learning_rate=1e-5")
            continue
        problem = _set_dotted(result, name.strip().split("."), parse_yaml(text, f"--set {name}"))
        if problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise ConfigError(problems, source="--set")
    return result


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep_copy(item) for item in value]
    return value


def _set_dotted(target: Any, path: list[str], value: Any) -> str | None:
    """Set `value` at `path` inside nested dicts and lists; the problem in words, or None."""
    for depth, key in enumerate(path[:-1]):
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                return f"there is no item {key!r} (the list has {len(target)})"
            target = target[int(key)]
        else:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
        if not isinstance(target, dict | list):
            return f"{'.'.join(path[: depth + 1])} is a plain value and has no parts"
    last = path[-1]
    if isinstance(target, list):
        if not last.isdigit() or int(last) >= len(target):
            return f"there is no item {last!r} (the list has {len(target)})"
        target[int(last)] = value
    else:
        target[last] = value
    return None


def build(model: type[T], data: Mapping[str, Any], source: str) -> T:
    """Validate `data` as `model`.

    Raises:
        ConfigError: with every problem at once; an unknown name comes with the nearest valid one.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigError([_sentence(model, item) for item in _own_problems(error)], source=source) from None


def _own_problems(error: pydantic.ValidationError) -> list[Any]:
    """All but the lists that are too short only because what stands in them is wrong."""
    items = error.errors()
    inside = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    return [item for item in items if item["type"] != "too_short" or item["loc"] not in inside]


def _sentence(model: type[Settings], item: Any) -> str:
    path, models = _walk(model, [str(part) for part in item["loc"]])
    name, value, shown = ".".join(path) or "settings", item.get("input"), repr(item.get("input"))
    kinds = [kind for each in models for kind in _kinds(each)]
    found = "" if len(shown) > 80 else f" (found {shown})"
    match item["type"]:
        case "extra_forbidden":
            _, parents = _walk(model, [str(part) for part in item["loc"][:-1]])
            known = sorted({field for each in parents for field in each.model_fields})
            _, members = _walk(model, [str(part) for part in item["loc"][:-2]])
            others = [kind for each in members if path[-1] in each.model_fields for kind in _kinds(each)]
            hint = f"it belongs to {', '.join(others)}" if others else _nearest(path[-1], known)
            return f"{name}: unknown setting; {hint}"
        case "missing":
            return f"{name}: required, and not given"
        case "union_tag_invalid":
            given = str(item["ctx"]["tag"])
            return f"{name}: unknown {_noun(path)} {given!r}; {_nearest(given, kinds)}"
        case "union_tag_not_found":
            return f"{name}: 'kind' is missing; it names the {_noun(path)}: {', '.join(kinds)}"
        case "tuple_type" | "list_type":
            return f"{name}: must be a list, such as {_as_list(value, kinds)}{found}"
        case "model_type" | "dict_type":
            return f"{name}: must be a mapping of names to values{found}"
        case "model_attributes_type" if kinds:
            return f"{name}: must be a mapping; write {path[-2]}: {_as_list(value, kinds)}{found}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{name}: {message}" + ("" if item["type"] == "value_error" or isinstance(value, dict) else found)


def _nearest(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"


def _noun(path: Sequence[str]) -> str:
    """`data.0.filters.1` → filter."""
    return next(part for part in reversed(path) if not part.isdigit()).removesuffix("s")


def _as_list(value: Any, kinds: Sequence[str]) -> str:
    """How a value that stands alone is written as a list."""
    if isinstance(value, dict):
        return f"[{{kind: {value.get('kind', kinds[0])}, …}}]" if kinds else "[{…}]"
    return f"[{{kind: {value if value in kinds else kinds[0]}}}]" if kinds else f"[{value}]"


def _walk(model: type[Settings], parts: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The path as the user writes it, and the settings classes that can stand there.

    Pydantic puts the `kind` of a member of a union into the path; it chooses the class, and isn't written.
    """
    models: list[type[BaseModel]] = [model]
    path: list[str] = []
    for part in parts:
        members = [each for each in models if part in _kinds(each)]
        if len(models) > 1 and members and path[-1].isdigit():
            models = members
            continue
        path.append(part)
        fields = [each.model_fields[part].annotation for each in models if part in each.model_fields]
        if fields or not part.isdigit():
            models = [inner for annotation in fields for inner in _settings_in(annotation)]
    return path, models


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """What `kind` may be in a member of a union of settings."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _settings_in(argument)

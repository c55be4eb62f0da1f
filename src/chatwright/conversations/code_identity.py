"""What code a result depends on: hashes of a user's modules, versions of libraries. For cache keys.

Modules are followed through their import statements, wherever these stand; none but parent packages is imported for
that. Files that code reads as data, and modules that it imports by name at run time, aren't seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = tuple(
    Path(folder).resolve() for name, folder in sysconfig.get_paths().items() if name in ("purelib", "platlib")
)


def library_version(name: str) -> str:
    """`name 1.2`, or the bare name where it isn't installed as a package."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def code_identity(module: str) -> str:
    """sha256 (hex) of a module's code, that of the user's modules it imports, and the versions of libraries.

    Args:
        module: its dotted name; it can be imported.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in found or top in sys.stdlib_module_names or top == "chatwright":
            continue  # the program's own version is part of every key
        file = _file_of(name)
        if file is None:
            continue  # a name inside a module, or a module that isn't installed
        if any(file.is_relative_to(folder) for folder in _LIBRARIES):
            found[top] = library_version(top)
            continue
        code = file.read_bytes()
        found[name] = hashlib.sha256(code).hexdigest()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [*_parents(name), *_imports(code, package)] if file.suffix == ".py" else ()
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _file_of(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # its parent is no package, or a module that wasn't imported from a file
        return None
    file = Path(spec.origin) if spec is not None and spec.origin else None
    return file.resolve() if file is not None and file.is_file() else None


def _parents(name: str) -> list[str]:
    """The packages that are imported before a module."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _imports(code: bytes, package: str) -> Iterator[str]:
    """The names that a module's import statements may mean as modules."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            steps = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*steps, *([node.module] if node.module else [])])
            if base:
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*"))
            else:
                yield from (alias.name for alias in node.names)

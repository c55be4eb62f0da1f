"""The plan of the house, enforced: import order, what may load torch, and the size budgets."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "chatwright"
ORDER = [
    *("errors", "settings", "layouts", "console", "conversations", "tasks", "templates", "packing", "inspection"),
    *(
        "run_folder",
        "runtime",
        "batches",
        "preparation",
        "models",
        "adapters",
        "losses",
        "optim",
        "checkpoints",
        "inference",
        "evals",
        "train",
    ),
    *("serve", "reports", "recipes", "selftest", "cli"),
]
RANK = {name: place for place, name in enumerate(ORDER)} | {"console": 2}
NEVER_TORCH = ("conversations", "tasks", "templates", "packing", "inspection", "reports")
FORBIDDEN = {
    **{
        room: {"conversations", "templates", "packing", "batches"} for room in ("models", "adapters", "losses", "optim")
    },
    "train": {"evals", "inference"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, imports inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "chatwright":
                found |= {f"chatwright.{alias.name}" for alias in node.names}
    return found


def wrong_edges(room: str, modules: set[str]) -> list[str]:
    """The imports that run against the flow."""
    wrong = []
    for module in modules:
        parts = module.split(".")
        if parts[0] != "chatwright" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        target = parts[1]
        if target == room:
            continue
        if RANK[target] > RANK[room] or target in FORBIDDEN.get(room, set()):
            wrong.append(f"{room} → {target}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_order(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in RANK, f"{room} is not in the plan of the house"
    assert wrong_edges(room, imported_modules(path)) == []


def test_the_order_check_sees_a_wrong_edge() -> None:
    assert wrong_edges("models", {"chatwright.templates.template"}) == ["models → templates"]
    assert wrong_edges("conversations", {"chatwright.batches.loader"}) == ["conversations → batches"]
    assert wrong_edges("train", {"chatwright.inference.engine"}) == ["train → inference"]


@pytest.mark.parametrize("room", NEVER_TORCH)
def test_text_rooms_never_import_torch(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        heavy = {m for m in imported_modules(path) if m.split(".")[0] in ("torch", "transformers")}
        assert not heavy, f"{path} imports {heavy}"


def test_text_rooms_load_no_torch_at_run_time() -> None:
    names = [
        ".".join(("chatwright", *path.relative_to(PACKAGE).with_suffix("").parts))
        for room in NEVER_TORCH
        for path in (PACKAGE / room).rglob("*.py")
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "import chatwright, chatwright.cli.main\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_folder_inits_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            assert path.read_text(encoding="utf-8").strip() == "", path


def test_size_budgets() -> None:
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES if path.name != "__init__.py"}
    assert {str(p): n for p, n in lengths.items() if n > 400} == {}
    assert statistics.median(lengths.values()) < 200
    functions: dict[str, int] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{path}:{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    assert {name: n for name, n in functions.items() if n > 80} == {}
    assert statistics.median(functions.values()) <= 14


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            missing.append(str(path))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path}:{node.name}")
    assert missing == []

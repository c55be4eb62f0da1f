"""Runs the program inside the sandbox; the interpreter there is started with this file's text.

It gets a random token and the program from descriptor 3, which it then closes. After the program's last line, and
only then, it writes the token to descriptor 4: so a program that ends itself before (`sys.exit(0)`, `os._exit(0)`,
another program put in its place) isn't taken for one that passed its tests. The token stands in no file, argument or
environment. But program and driver share one interpreter: a program written to search its own process's frames or
memory for the token can find it.

Imports little, and late: its start is part of every run.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, TracebackType

_NAME = "program.py"


def _compiled(source: str, show_value: bool) -> tuple[CodeType, CodeType | None]:
    """The program, and its last expression apart where its value is to be shown, as notebooks do."""
    if not show_value:
        return compile(source, _NAME, "exec", dont_inherit=True), None
    import ast

    tree = ast.parse(source, _NAME)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return compile(tree, _NAME, "exec", dont_inherit=True), None
    tree.body.pop()
    value = compile(ast.Expression(last.value), _NAME, "eval", dont_inherit=True)
    return compile(tree, _NAME, "exec", dont_inherit=True), value


def _show(error: BaseException, source: str) -> None:
    """Print an uncaught exception as the interpreter does, without this file's frames."""
    import linecache
    import traceback

    linecache.cache[_NAME] = (len(source), None, source.splitlines(keepends=True), _NAME)
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename != _NAME:
        place = place.tb_next
    traceback.print_exception(type(error), error, place)


def _add_quitters() -> None:
    """`exit` and `quit`, which come with the module `site` that is left out: its folders hold no standard library."""
    import _sitebuiltins
    import builtins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "the end of the program"))


def _run(source: str, show_value: bool, as_main: bool) -> bool:
    """Whether the program, as module `__main__` or `program`, came to its end; an uncaught exception is shown.

    Raises:
        SystemExit: the program's own.
    """
    _add_quitters()
    module = type(sys)("__main__" if as_main else "program")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    sys.argv = [_NAME]
    try:
        code, value = _compiled(source, show_value)
        exec(code, module.__dict__)  # noqa: S102 - what the sandbox is for
        result = eval(value, module.__dict__) if value else None  # noqa: S307
        if result is not None:
            print(repr(result))
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - shown as the interpreter would
        _show(error, source)
        return False
    return True


def main() -> None:
    """Read, run, and say that the end was reached; an uncaught exception ends the process with status 1.

    What decides is bound before the program runs: it may put its own functions in the place of the modules'.
    """
    end, write = os._exit, os.write
    with open(3, "rb") as file:
        token, flags, source = file.read().split(b"\n", 2)
    os.set_inheritable(4, False)
    if not _run(source.decode("utf-8", "surrogatepass"), b"show" in flags, b"main" in flags):
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            end(1)
    write(4, token)


if __name__ == "__main__":
    main()

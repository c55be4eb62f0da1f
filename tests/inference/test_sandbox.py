"""The sandbox in ordinary use: results and reasons, what it says of itself, refusal, and that nothing stays behind."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatwright.conversations.task_formats import convert_humaneval
from chatwright.errors import UserError
from chatwright.inference import sandbox as sandbox_module
from chatwright.inference import sandbox_report
from chatwright.inference.sandbox import EXECUTOR_LIMITS, Sandbox, SandboxError, SandboxLimits, sandbox_executor
from chatwright.inference.sandbox_memory import memory_of_tree
from chatwright.inference.sandbox_methods import python_needs
from chatwright.inference.sandbox_report import CLAIMS, METHODS, SandboxReport, attempt, probe
from chatwright.tasks.humaneval import HumanEval
from chatwright.tasks.task import NoOptions
from shared_files import shared

ISOLATING = [method for method in METHODS if probe(method).isolates]
isolated = pytest.mark.skipif(not ISOLATING, reason="nothing isolates on this machine")
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@pytest.fixture
def nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any way to isolate."""
    report = SandboxReport("namespaces", problem="unshare: Operation not permitted")
    monkeypatch.setattr(sandbox_module, "best_report", lambda: report)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


@isolated
@pytest.mark.parametrize("method", ISOLATING)
@pytest.mark.parametrize(
    ("program", "reason", "exit_code", "stdout", "stderr"),
    [
        ("print('Grüße', 1)", "finished", 0, "Grüße 1\n", ""),
        ("import sys\nprint('a')\nsys.exit(0)\nprint('b')", "exited", 0, "a\n", ""),
        ("import sys\nsys.exit(3)", "error", 3, "", ""),
        ("import sys\nsys.exit('no')", "error", 1, "", "no\n"),
        ("print(1", "error", 1, "", "SyntaxError: '(' was never closed\n"),
        ("import os\nos.abort()", "signal", -6, "", ""),
        ("if __name__ == '__main__':\n    print(sorted(globals())[-1])", "finished", 0, "__spec__\n", ""),
        ("", "finished", 0, "", ""),
        ("import os\nprint(os.getcwd(), os.listdir())", "finished", 0, "/tmp []\n", ""),
        ("import os\nprint(os.write(1, b'\\xff'))", "finished", 0, "�1\n", ""),
    ],
)
def test_a_run_tells_how_it_ended(
    method: sandbox_report.Method, program: str, reason: str, exit_code: int, stdout: str, stderr: str
) -> None:
    result = Sandbox(method=method).run(program)
    assert (result.reason, result.exit_code, result.stdout) == (reason, exit_code, stdout)
    assert result.stderr.endswith(stderr)
    assert result.ok == (reason in ("finished", "exited"))
    assert 0 < result.seconds < 30


@isolated
def test_an_error_is_shown_as_the_interpreter_shows_it() -> None:
    result = Sandbox().run("def f():\n    return 1 / 0\n\nf()\n")
    assert result.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "program.py", line 4, in <module>',
        "    f()",
        '  File "program.py", line 2, in f',
        "    return 1 / 0",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


@isolated
def test_standard_input_and_the_last_value() -> None:
    sandbox = Sandbox()
    text = "zwölf\n" * 50_000  # more than a pipe holds
    assert sandbox.run("import sys\nprint(len(sys.stdin.read()))", stdin=text).stdout == f"{len(text)}\n"
    assert sandbox.run("print('not read')", stdin=text).ok
    assert sandbox.run("x = 6\nx * 7", show_value=True).stdout == "42\n"
    assert sandbox.run("'a'", show_value=True).stdout == "'a'\n"
    assert sandbox.run("None", show_value=True).stdout == ""
    assert sandbox.run("x = 1", show_value=True).stdout == ""
    assert sandbox.run("6 * 7").stdout == ""


@isolated
def test_processor_time_is_bounded_beside_the_clock() -> None:
    assert Sandbox(SandboxLimits(wall_seconds=60, cpu_seconds=1)).run("while True: pass").reason == "cpu"


@isolated
@pytest.mark.slow
def test_processor_time_is_bounded_for_who_ignores_the_signal() -> None:
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert Sandbox(SandboxLimits(wall_seconds=60, cpu_seconds=1)).run(deaf).reason == "cpu"


@isolated
def test_equal_programs_do_equal_things_and_share_nothing() -> None:
    sandbox = Sandbox()
    program = "import os\nprint(os.listdir('/tmp'), hash('a'))\nopen('/tmp/left', 'w').close()"
    first, second = sandbox.run(program), sandbox.run(program)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("[] ")


@isolated
def test_processes_and_threads_work_inside() -> None:
    program = """
import multiprocessing, threading, tempfile, subprocess, sys
with multiprocessing.Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))
thread = threading.Thread(target=print, args=("thread",))
thread.start(); thread.join()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
print(subprocess.run([sys.executable, "-S", "-c", "print(3)"], capture_output=True, text=True).stdout)
"""
    result = Sandbox().run(program)
    assert result.stdout.split() == ["[1,", "2]", "thread", "3"], result.stderr


@isolated
def test_many_at_once_leave_no_descriptor_and_no_process() -> None:
    sandbox = Sandbox(SandboxLimits(wall_seconds=30))
    sandbox.run("pass")
    before = open_descriptors()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: sandbox.run(f"print({n})").stdout, range(12)))
    assert results == [f"{n}\n" for n in range(12)]
    assert open_descriptors() == before
    assert memory_of_tree(os.getpid()) == 0, "no process of ours is left"


@isolated
@pytest.mark.parametrize("method", ISOLATING)
def test_the_sandbox_ends_with_its_host(method: str, tmp_path: Path) -> None:
    """A host that is killed takes its sandboxes with it, though nobody tells them."""
    name = f"host{os.getpid()}"
    inside = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\ntime.sleep(600)"
    code = (
        "from chatwright.inference.sandbox import Sandbox, SandboxLimits\n"
        f"Sandbox(SandboxLimits(wall_seconds=600), method={method!r}).run({inside!r})"
    )

    def running() -> bool:
        found = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            try:
                found.append(path.read_text(encoding="utf-8").strip())
            except OSError:
                continue
        return name in found

    host = subprocess.Popen([sys.executable, "-c", code])
    try:
        _wait_until(running)
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    _wait_until(lambda: not running())


def _wait_until(happened: object) -> None:
    for _ in range(600):
        if happened():  # type: ignore[operator]
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 seconds")


# What it says of itself


@linux
def test_the_report_tells_what_is_not_enforced() -> None:
    """The attempts are real: where nothing isolates, they succeed."""
    report = attempt("none")
    broken = {words for words, _ in report.broken}
    assert not report.isolates and report.problem is None
    for name in ("read_host_file", "see_processes", "reach_network", "see_name", "write_too_many"):
        assert CLAIMS[name].words in broken, name
    assert len(report.held) + len(report.broken) == len(CLAIMS)
    assert CLAIMS["read_host_file"].words in report.why_not()


@isolated
@pytest.mark.parametrize("method", ISOLATING)
def test_the_report_tells_what_is_enforced(method: sandbox_report.Method) -> None:
    report = probe(method)
    needed = {claim.words for claim in CLAIMS.values() if claim.required}
    assert needed <= set(report.held)
    assert probe(method) is report, "tried once a process"


def test_a_claim_that_is_not_required_does_not_refuse() -> None:
    words = CLAIMS["write_too_many"].words
    assert SandboxReport("namespaces", broken=((words, "many"),)).isolates
    needed = CLAIMS["reach_network"].words
    report = SandboxReport("namespaces", broken=((needed, "connected"),))
    assert not report.isolates and "connected" in report.why_not()


@pytest.mark.usefixtures("nothing_isolates")
def test_without_isolation_nothing_runs() -> None:
    with pytest.raises(SandboxError, match="unshare: Operation not permitted") as refused:
        Sandbox()
    assert isinstance(refused.value, UserError)
    assert "allow" in str(refused.value) and "unsafe" in str(refused.value)
    with pytest.raises(SandboxError, match="can't isolate untrusted code"):
        sandbox_executor()


@pytest.mark.parametrize(("platform", "hint"), [("darwin", "use Linux"), ("win32", "WSL"), ("linux", "bubblewrap")])
def test_other_systems_are_refused_with_a_way_out(platform: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    probe.cache_clear()
    try:
        if platform != "linux":
            assert "no namespaces" in probe("namespaces").why_not()
            with pytest.raises(SandboxError, match=hint):
                Sandbox()
        error = sandbox_module.refusal(SandboxReport("namespaces", problem="x"))
        assert hint in str(error)
        if platform == "win32":
            with pytest.raises(SandboxError):
                Sandbox(allow_unsafe=True)
    finally:
        probe.cache_clear()


@linux
@pytest.mark.usefixtures("nothing_isolates")
def test_the_override_still_has_limits_and_clears_up() -> None:
    sandbox = Sandbox(SandboxLimits(wall_seconds=60, memory_bytes=256 * 2**20), allow_unsafe=True)
    assert sandbox.method == "none"
    result = sandbox.run("import os\nprint(os.getcwd(), os.listdir(), sorted(os.environ))")
    folder, *rest = result.stdout.split(" ", 1)
    assert rest == ["[] ['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'TMPDIR']\n"]
    assert not Path(folder).exists()
    assert sandbox.run("bytearray(1 << 30)").stderr.strip().endswith("MemoryError")
    short = Sandbox(SandboxLimits(wall_seconds=1), allow_unsafe=True)
    assert short.run("import time\ntime.sleep(600)").reason == "time"
    assert sandbox.run("import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))").stdout == "-1\n"
    daemon = "    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)\n"
    result = sandbox.run(f"import os, time\nif os.fork() == 0:\n{daemon}os.wait()\nprint('ended')")
    assert (result.stdout, result.reason) == ("ended\n", "finished")
    assert memory_of_tree(os.getpid()) == 0, "the daemon is gone, too"


def test_only_what_python_needs_is_bound() -> None:
    needs = python_needs()
    home = str(Path.home())
    assert all(path not in ("/", "/usr", "/etc", home, str(Path.cwd())) for path in needs.binds)
    assert not any(path.startswith(("/etc/", "/home")) and path != "/etc/ld.so.cache" for path in needs.binds)
    assert any(os.__file__.startswith(path + "/") for path in needs.binds)
    nested = [a for a in needs.binds for b in needs.binds if a != b and a.startswith(b + "/")]
    assert nested == []


# Grading


@isolated
@pytest.mark.parametrize("method", ISOLATING)
def test_a_graded_program_is_no_script(method: sandbox_report.Method) -> None:
    program = "import pickle\ndef f(): pass\nassert pickle.loads(pickle.dumps(f)) is f\nprint(__name__)"
    sandbox = Sandbox(method=method)
    assert sandbox.run(program).stdout == "__main__\n"
    assert sandbox.run(program, as_main=False).stdout == "program\n"
    assert sandbox_executor()("if __name__ == '__main__':\n    raise ValueError")


@isolated
def test_waiting_does_not_decide_a_grade() -> None:
    assert (EXECUTOR_LIMITS.cpu_seconds, EXECUTOR_LIMITS.wall_seconds) == (10, 60)
    assert not sandbox_executor(SandboxLimits(wall_seconds=0.5))("import time\ntime.sleep(1)")
    made: list[SandboxLimits | None] = []

    class Recorded(Sandbox):
        def __init__(self, limits: SandboxLimits | None = None, **rest: object) -> None:
            made.append(limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox_module, "Sandbox", Recorded)
        sandbox_executor()
    assert made == [EXECUTOR_LIMITS]


def humaneval_rows() -> list[dict[str, str]]:
    packed = shared("data/humaneval/HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]


@isolated
def test_humaneval_in_the_sandbox() -> None:
    task = HumanEval(NoOptions()).with_executor(sandbox_executor())
    for number, row in enumerate(humaneval_rows()[:3]):
        conversation = convert_humaneval(row, "HumanEval", number)
        right = conversation.messages[-1]
        assert task.grade(conversation, right)
        broken = right.text.replace("return", "import os; os._exit(0); return")
        assert not task.grade(conversation, right.of("assistant", broken))
        assert not task.grade(conversation, right.of("assistant", row["prompt"] + "    return None\n"))


@isolated
@pytest.mark.slow
def test_every_reference_solution_of_humaneval_passes() -> None:
    run, programs = sandbox_executor(), []

    def keep(program: str) -> bool:
        programs.append(program)
        return True

    task = HumanEval(NoOptions()).with_executor(keep)
    for number, row in enumerate(humaneval_rows()):
        conversation = convert_humaneval(row, "HumanEval", number)
        task.grade(conversation, conversation.messages[-1])
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(run, programs))
        cut = list(pool.map(run, [program.rsplit("check(", 1)[0] + "import sys; sys.exit(0)" for program in programs]))
    assert passed == [True] * 164
    assert cut == [False] * 164

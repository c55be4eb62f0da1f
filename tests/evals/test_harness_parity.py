"""lm-eval's `--model chatwright` beside its `--model hf` on the same model: the same numbers for every kind of request.

Needs the extra `harness`; skipped without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatwright.errors import ConfigError, UserError
from tiny_model import make_tiny_model

pytest.importorskip("lm_eval", reason='lm-eval is absent: pip install "chatwright[harness]"')

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from chatwright.recipes.harness_model import ChatwrightLM, run_lm_eval

LONG = "Where is the river? The river is behind the hill. Name an animal that can fly. " * 12
PAIRS = [
    ("Who are you?", " I am a tiny model"),
    ("Who are you?", " I am"),
    ("Who are you? ", "I am"),
    ("", "Blue is a colour."),
    ("", "B"),
    ("What is two and three?\n", "five"),
    (LONG, " A bat can fly"),
    (LONG[:300], LONG[300:560]),
    ("Ünï", "ço∂é"),
]


@pytest.fixture(scope="module", params=["plain", "begins"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose weights disagree; one tokenizer puts a begin-of-text before texts, the other doesn't."""
    made = make_tiny_model(tmp_path_factory.mktemp("model") / request.param, initializer_range=0.3)
    if request.param == "begins":
        data = json.loads((made / "tokenizer.json").read_text(encoding="utf-8"))
        name, index = "<|endoftext|>", 0
        single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special = {name: {"id": name, "ids": [index], "tokens": [name]}}
        data["post_processor"] = {
            **{"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
        }
        (made / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
        (made / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": name}), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> ChatwrightLM:
    return ChatwrightLM(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    made = get_model("hf").create_from_arg_obj(
        {"pretrained": str(folder), "dtype": "float32"}, {"batch_size": 3, "device": "cpu"}
    )
    return made


def requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """lm-eval's requests for these arguments."""
    return [Instance(kind, {}, each, 0, ("task", number, 1)) for number, each in enumerate(arguments)]


def assert_close(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    """The same sums within float32's noise, and the same verdicts on greedy decoding."""
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-3, rel=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_loglikelihoods_are_those_of_hf(ours: ChatwrightLM, theirs: Any) -> None:
    asked = requests("loglikelihood", PAIRS)
    assert_close(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))


def test_a_greedy_continuation_is_known_as_one(ours: ChatwrightLM, theirs: Any) -> None:
    written = theirs.generate_until(requests("generate_until", [("Who are you?", {"max_gen_toks": 3})]))[0]
    asked = requests("loglikelihood", [("Who are you?", written), ("Who are you?", " no")])
    found = ours.loglikelihood(asked)
    assert_close(found, theirs.loglikelihood(asked, disable_tqdm=True))
    assert not found[1][1]


def test_rolling_loglikelihoods_are_those_of_hf(ours: ChatwrightLM, theirs: Any) -> None:
    texts = ["Blue is a colour.", LONG, LONG[:700], "a", ""]
    asked = requests("loglikelihood_rolling", [(text,) for text in texts])
    found, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3, rel=1e-5)
    assert found[1] < found[2] < found[0] < found[4] <= 0.0


def test_generations_are_those_of_hf(ours: ChatwrightLM, theirs: Any) -> None:
    probe = requests("generate_until", [("Name a colour.", {"max_gen_toks": 12, "until": []})])
    (text,) = theirs.generate_until(probe, disable_tqdm=True)
    asked = requests(
        "generate_until",
        [
            ("Name a colour.", {"max_gen_toks": 12, "until": []}),
            ("Name a colour.", {"max_gen_toks": 12, "until": text[4:6]}),
            ("Name a colour.", {"max_gen_toks": 12, "until": ["never", text[7:10]], "do_sample": False}),
            (LONG, {"max_new_tokens": 5, "until": ["\n\n"], "temperature": 0.0}),
            ("Who are you?", {"max_gen_toks": 40, "until": ["<|im_start|>"]}),
        ],
    )
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)
    assert found[0] == text and text[4:6] not in found[1] and len(found[1]) < len(text)


def test_chat_prompts_are_those_of_hf(ours: ChatwrightLM, folder: Path) -> None:
    """Where the tokenizer begins texts with begin-of-text and the template declares none, `hf` does so all the same."""
    options = {"pretrained": str(folder), "dtype": "float32", "add_bos_token": False}
    theirs = get_model("hf").create_from_arg_obj(options, {"batch_size": 3, "device": "cpu"})
    histories = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}],
        [
            {"role": "user", "content": "Two and three?"},
            {"role": "assistant", "content": "five"},
            {"role": "user", "content": "Four?"},
        ],
    ]
    opened = [[*histories[0], {"role": "assistant", "content": "The answer is"}]]
    for rows, generation in ((histories, True), (opened, False)):
        found = []
        for lm in (ours, theirs):
            prompts = [lm.apply_chat_template(row, add_generation_prompt=generation) for row in rows]
            asked = requests("loglikelihood", [(prompt, end) for prompt in prompts for end in ("a", " b")])
            found.append(lm.loglikelihood(asked))
        assert_close(*found)


def test_the_prefix_can_be_chosen_and_begin_of_text_be_left_out(folder: Path) -> None:
    asked = requests("loglikelihood", [("", "Blue"), ("Blue is", " a")])
    for options in ({"prefix_token_id": 5}, {"add_bos_token": False}):
        ours = ChatwrightLM(str(folder), dtype="float32", device="cpu", **options)
        theirs = get_model("hf").create_from_arg_obj({"pretrained": str(folder), **options}, {"device": "cpu"})
        assert_close(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))


def test_a_shorter_context_cuts_as_hf_cuts(folder: Path) -> None:
    asked = requests("loglikelihood", [(LONG, " A bat"), (LONG[:100], LONG[100:128])])
    rolled = requests("loglikelihood_rolling", [(LONG[:400],)])
    ours = ChatwrightLM(str(folder), dtype="float32", device="cpu", max_length=40)
    theirs = get_model("hf").create_from_arg_obj({"pretrained": str(folder), "max_length": 40}, {"device": "cpu"})
    assert_close(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))
    assert ours.loglikelihood_rolling(rolled) == pytest.approx(theirs.loglikelihood_rolling(rolled), rel=1e-5)


def test_what_is_sampled_follows_the_seed(folder: Path) -> None:
    drawn = ("Name a colour.", {"max_gen_toks": 10, "do_sample": True, "temperature": 1.0, "until": []})
    asked = requests("generate_until", [drawn, drawn, ("Name a colour.", {"max_gen_toks": 10, "temperature": 0.0})])
    one = ChatwrightLM(str(folder), device="cpu").generate_until(asked)
    assert one == ChatwrightLM(str(folder), device="cpu").generate_until(asked)
    assert one[0] != one[1], "repeats of a request differ"
    assert one[:2] != ChatwrightLM(str(folder), device="cpu", seed=1).generate_until(asked)[:2]


def test_mistakes_are_told(ours: ChatwrightLM, folder: Path) -> None:
    def generate(**given: Any) -> None:
        ours.generate_until(requests("generate_until", [("a", given)]))

    with pytest.raises(ConfigError, match="num_beams: not known here"):
        generate(num_beams=4)
    generate(num_beams=1, max_gen_toks=1)
    with pytest.raises(ConfigError, match="top_p"):
        generate(do_sample=True, top_p=7)
    with pytest.raises(UserError, match="no room for a prompt"):
        generate(max_gen_toks=256)
    with pytest.raises(UserError, match="melts into"):
        ours.loglikelihood(requests("loglikelihood", [("a", "")]))
    with pytest.raises(UserError, match="context holds 256"):
        ours.loglikelihood(requests("loglikelihood", [("a", LONG)]))
    with pytest.raises(UserError, match="no choice of templates"):
        ours.chat_template("rag")
    with pytest.raises(ConfigError, match="parallelize: unknown"):
        ChatwrightLM(str(folder), parallelize=True)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1"):
        ChatwrightLM(str(folder), device="cuda:1")
    with pytest.raises(UserError, match="model's context of 256"):
        ChatwrightLM(str(folder), max_length=257)


# The whole of lm-eval


QUESTIONS = [
    {"question": "What is two and three?", "choices": [" five", " Blue", " a bat"], "gold": 0},
    {"question": "Name a colour.", "choices": [" river", " Blue"], "gold": 1},
    {"question": "What can fly?", "choices": [" hill", " A bat", " bird", " model"], "gold": 1},
    {"question": "Who are you?", "choices": [" a tiny model", " the hill"], "gold": 0},
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """One synthetic task for each kind of request, from a local file."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    made = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "num_fewshot": 1,
        },
        "tiny_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{choices[gold]}}",
        },
        "tiny_words": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
        },
    }
    for name, task in made.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}), encoding="utf-8")
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


NAMES = ["tiny_choice", "tiny_rolling", "tiny_words"]


@pytest.mark.parametrize("chat", [False, True])
def test_whole_tasks_give_the_same_results(
    tasks: TaskManager, ours: Any, theirs: Any, folder: Path, chat: bool
) -> None:
    names = ["tiny_choice", "tiny_words"] if chat else NAMES
    options: dict[str, Any] = {"tasks": names, "task_manager": tasks, "bootstrap_iters": 0}
    options |= {"apply_chat_template": True, "system_instruction": "Be brief."} if chat else {}
    mine, hf = (lm_eval.simple_evaluate(lm, **options) for lm in (ours, theirs))
    assert mine is not None and hf is not None
    for name in names:
        for metric, value in hf["results"][name].items():
            assert mine["results"][name][metric] == (pytest.approx(value) if isinstance(value, float) else value)
        for left, right in zip(mine["samples"][name], hf["samples"][name], strict=True):
            assert left["doc_id"] == right["doc_id"]
            if name == "tiny_choice" and (folder.name == "plain" or not chat):  # else `hf` adds a begin-of-text
                assert_close([each for (each,) in left["resps"]], [each for (each,) in right["resps"]])


def test_the_cache_of_answers_is_filled_as_they_come(
    tasks: TaskManager, ours: ChatwrightLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tasks": NAMES, "task_manager": tasks, "bootstrap_iters": 0}
    first = lm_eval.simple_evaluate(ours, use_cache=str(tmp_path / "answers"), **options)
    monkeypatch.setattr(ours.engine, "score", None)
    monkeypatch.setattr(ours.engine, "stream", None)
    again = lm_eval.simple_evaluate(ours, use_cache=str(tmp_path / "answers"), **options)
    assert first is not None and again is not None and first["results"] == again["results"]


def test_every_answer_goes_to_the_cache_as_it_comes(ours: ChatwrightLM, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, list[tuple[Any, Any]]] = {}

    class Hook:
        def add_partial(self, kind: str, arguments: tuple[Any, ...], answer: Any) -> None:
            kept.setdefault(kind, []).append((arguments, answer))

    monkeypatch.setattr(ours, "cache_hook", Hook())
    asked = {
        "loglikelihood": [pair for pair in PAIRS if len(pair[1]) > 2],
        "loglikelihood_rolling": [("Blue",), (LONG,)],
        "generate_until": [("Blue", {"max_gen_toks": 3}), ("A bat", {"max_gen_toks": 2, "until": ["x"]})],
    }
    for kind, arguments in asked.items():
        answers = getattr(ours, kind)(requests(kind, arguments))
        expected = [repr(pair) for pair in zip(arguments, answers, strict=True)]
        assert sorted(map(repr, kept[kind])) == sorted(expected)


@pytest.mark.slow
def test_the_command_line_is_lm_evals(tasks: TaskManager, folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ["--model_args", f"pretrained={folder},dtype=float32,batch_rows=2", "--device", "cpu"]
    arguments += ["--tasks", "tiny_choice", "--include_path", str(tmp_path), "--output_path", str(out), "--log_samples"]
    run_lm_eval(arguments)
    assert "chatwright" in capsys.readouterr().out
    (path,) = out.rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["config"]["model"] == "chatwright" and results["config"]["model_dtype"] == "torch.float32"
    assert len(results["config"]["model_sha"]) == 64 and "acc,none" in results["results"]["tiny_choice"]


def test_lm_evals_own_complaints_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        def stand_in() -> None:
            raise error

        monkeypatch.setattr("chatwright.recipes.harness_model.cli_evaluate", stand_in)

    fail(ValueError("Tasks not found: arc_esay"))
    with pytest.raises(UserError, match=r"arc_esay(.|\n)*ls tasks"):
        run_lm_eval(["--tasks", "arc_esay"])
    fail(ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub"))
    with pytest.raises(UserError, match=r"ai2_arc(.|\n)*HF_ENDPOINT"):
        run_lm_eval(["--tasks", "arc_easy"])
    fail(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        run_lm_eval(["--tasks", "arc_easy"])


def test_lm_evals_default_device_is_the_fastest_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatwright.recipes.harness_model.available_devices", lambda: ["cpu"])
    monkeypatch.setattr("chatwright.runtime.available_devices", lambda: ["cpu"])
    lm = ChatwrightLM(str(folder), device="cuda:0")
    assert next(lm.engine.model.parameters()).device.type == "cpu"


@pytest.mark.slow
def test_ranks_share_the_documents(tasks: TaskManager, ours: ChatwrightLM, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "chatwright", "harness"]
    arguments = ["--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu", "--output_path", str(out)]
    arguments += ["--tasks", ",".join(NAMES), "--include_path", str(tmp_path), "--log_samples"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.rglob("results_*.json")
    shared = json.loads(path.read_text(encoding="utf-8"))["results"]
    alone = lm_eval.simple_evaluate(ours, tasks=NAMES, task_manager=tasks)
    assert alone is not None
    for name in NAMES:
        lines = [json.loads(line) for found in out.rglob(f"samples_{name}_*") for line in found.open()]
        assert sorted(line["doc_id"] for line in lines) == list(range(len(QUESTIONS)))
        for metric, value in alone["results"][name].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert shared[name][metric] == pytest.approx(value), (name, metric)

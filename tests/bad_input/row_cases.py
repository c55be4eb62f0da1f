"""Rows and recipes that can't be used: wrong types, roles, weights, calls, tools; wrong settings."""

from __future__ import annotations

from typing import Any

from bad_case import Case, data, data_commands, formatted, line, message, recipe

USER = {"role": "user", "content": "a"}
HALF = "\ud800"


def call(**function: Any) -> dict[str, Any]:
    """An assistant message with one call."""
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def with_tools(tools: Any) -> dict[str, Any]:
    """A good row with tool definitions."""
    return {"messages": [USER, {"role": "assistant", "content": "b"}], "tools": tools}


ROWS = [
    line("null row", None, "object"),
    line("number row", 7, "object"),
    line("boolean row", True, "object"),
    line("text row", "hello", "object"),
    line("list row", [1], "object"),
    line("empty object", {}, "'messages'"),
    line("foreign keys", {"speech": "a", "answer": "b"}, "'messages'", "'speech'"),
    line("empty conversation", {"messages": []}, "messages", "empty"),
    line("messages null", {"messages": None}, "messages"),
    line("messages a number", {"messages": 3}, "messages", "list"),
    line("messages an object", {"messages": {"0": USER}}, "messages", "list"),
    line("messages as broken JSON text", {"messages": "[{"}, "messages", "JSON"),
    line("messages as deep JSON text", {"messages": "[" * 100_000}, "messages", "JSON"),
    line("NaN row", b"NaN", "object"),
    line("one row nested in another", [[{"messages": [USER]}]], "object"),
    line("system of a number", {"messages": [USER], "system": 3}, "system"),
    line("two system prompts", {"messages": [{"role": "system", "content": "x"}, USER], "system": "y"}, "system"),
    line("template variables a list", {"messages": [USER], "chat_template_kwargs": [1]}, "chat_template_kwargs"),
    line("template variables no JSON", {"messages": [USER], "chat_template_kwargs": "{"}, "chat_template_kwargs"),
    line("extra fields no JSON", {"messages": [USER], "chatwright_extra": "{"}, "chatwright_extra"),
    line("tools a number", with_tools(3), "tools", "list"),
    line("tools no JSON", with_tools("[{"), "tools", "JSON"),
    line("tools deep JSON text", with_tools("[" * 100_000), "tools", "JSON"),
    line("tool without name", with_tools([{"type": "function"}]), "tools.0", "name"),
    line("tool name a number", with_tools([{"function": {"name": 3}}]), "tools.0", "name"),
    line("tool null", with_tools([None]), "tools.0"),
    line("half a character in a tool", with_tools([{"name": "f", "description": HALF}]), "tools.0", "half a character"),
    line("half a character in a variable", {"messages": [USER], "chat_template_kwargs": {"x": HALF}}, "half"),
    line("half a character in a variable's name", {"messages": [USER], "chat_template_kwargs": {HALF: 1}}, "half"),
]

MESSAGES = [
    message("message null", None, "messages.1", "object"),
    message("message a text", "b", "messages.1", "object"),
    message("message a list", ["assistant", "b"], "messages.1", "object"),
    message("no role", {"content": "b"}, "messages.1.role"),
    message("role null", {"role": None, "content": "b"}, "messages.1.role"),
    message("role a list", {"role": ["assistant"], "content": "b"}, "messages.1.role"),
    message("role a number", {"role": 1, "content": "b"}, "messages.1.role"),
    message("unknown role", {"role": "narrator", "content": "b"}, "messages.1.role", "'narrator'"),
    message("role in capitals", {"role": "Assistant", "content": "b"}, "messages.1.role", "did you mean 'assistant'"),
    message("role with a space", {"role": " assistant", "content": "b"}, "messages.1.role", "did you mean 'assistant'"),
    message("role with a break", {"role": "assistant\n", "content": "b"}, "messages.1.role", "did you mean"),
    message("role of look-alike letters", {"role": "аssistant", "content": "b"}, "messages.1.role"),
    message("role of 10 MB", {"role": "x" * 10_000_000, "content": "b"}, "messages.1.role"),
    message("no content", {"role": "assistant"}, "messages.1.content", "no content"),
    message("content null", {"role": "assistant", "content": None}, "messages.1.content"),
    message("content a number", {"role": "assistant", "content": 3}, "messages.1.content", "3"),
    message("content a fraction", {"role": "assistant", "content": 1.5}, "messages.1.content", "1.5"),
    message("content a boolean", {"role": "assistant", "content": True}, "messages.1.content", "True"),
    message("content an object", {"role": "assistant", "content": {"text": "b"}}, "messages.1.content"),
    message("content NaN", {"role": "assistant", "content": float("nan")}, "messages.1.content", "nan"),
    message("no parts", {"role": "assistant", "content": []}, "messages.1.content", "empty"),
    message("part null", {"role": "assistant", "content": [None]}, "messages.1.content.0"),
    message("part a text", {"role": "assistant", "content": ["b"]}, "messages.1.content.0"),
    message("part without type", {"role": "assistant", "content": [{"text": "b"}]}, "messages.1.content.0.type"),
    message("part of a list type", {"role": "assistant", "content": [{"type": []}]}, "messages.1.content.0.type"),
    message("image", {"role": "assistant", "content": [{"type": "image_url"}]}, "content.0.type", "images"),
    message("part without text", {"role": "assistant", "content": [{"type": "text"}]}, "messages.1.content.0"),
    message("part text a number", {"role": "assistant", "content": [{"type": "text", "text": 3}]}, "content.0.text"),
    message("half a character", {"role": "assistant", "content": f"a{HALF}b"}, "messages.1.content", "half"),
    message("halves the wrong way round", {"role": "assistant", "content": "\udc00\ud800"}, "content", "half"),
    message("thinking a number", {"role": "assistant", "content": "b", "reasoning_content": 3}, "reasoning_content"),
    message("thinking of a user", {"role": "user", "content": "b", "reasoning_content": "x"}, "messages.1", "thinking"),
    message("weight NaN", {"role": "assistant", "content": "b", "weight": float("nan")}, "weight", "nan"),
    message("weight infinite", {"role": "assistant", "content": "b", "weight": float("inf")}, "weight", "inf"),
    message("weight negative", {"role": "assistant", "content": "b", "weight": -1}, "weight", "-1"),
    message("weight a text", {"role": "assistant", "content": "b", "weight": "1"}, "weight", "'1'"),
    message("weight a boolean", {"role": "assistant", "content": "b", "weight": True}, "weight", "True"),
    message("weight beyond all floats", {"role": "assistant", "content": "b", "weight": 10**400}, "weight"),
    message("weight beyond float32", {"role": "assistant", "content": "b", "weight": 1e300}, "weight", "1e+300"),
    message("train a number", {"role": "assistant", "content": "b", "train": 1}, "train"),
    message("train a text", {"role": "assistant", "content": "b", "train": "yes"}, "train", "'yes'"),
    message("trained with weight 0", {"role": "assistant", "content": "b", "train": True, "weight": 0}, "weight"),
    message("calls a number", {"role": "assistant", "content": "b", "tool_calls": 3}, "tool_calls"),
    message("calls no JSON", {"role": "assistant", "content": "b", "tool_calls": "[{"}, "tool_calls", "JSON"),
    message("call null", {"role": "assistant", "content": "b", "tool_calls": [None]}, "tool_calls.0"),
    message("call without name", call(arguments={}), "tool_calls.0.function.name"),
    message("call with an empty name", call(name="", arguments={}), "tool_calls.0.function.name"),
    message("call of a number", call(name=3), "tool_calls.0.function.name"),
    message("arguments a list", call(name="f", arguments=[1]), "function.arguments"),
    message("arguments a number", call(name="f", arguments=3), "function.arguments"),
    message("arguments a boolean", call(name="f", arguments=False), "function.arguments"),
    message("arguments with half a character", call(name="f", arguments={"x": HALF}), "function.arguments", "half"),
    message("call by a user", {**call(name="f"), "role": "user"}, "messages.1", "tool_call"),
    message("function a text", {"role": "assistant", "tool_calls": [{"function": "f"}]}, "tool_calls.0.function"),
    message("call id a number", {"role": "assistant", "tool_calls": [{"id": 3, "name": "f"}]}, "tool_calls.0"),
    message("result name a number", {"role": "tool", "content": "b", "name": 3}, "messages.1.name"),
    message("result without content", {"role": "tool"}, "messages.1.content"),
]

FORMATS = [
    formatted("sharegpt from nobody", "sharegpt", {"conversations": [{"value": "a"}]}, "conversations.0"),
    formatted("sharegpt role", "sharegpt", {"conversations": [{"from": "me", "value": "a"}]}, "from", "'me'"),
    formatted("sharegpt value null", "sharegpt", {"conversations": [{"from": "human", "value": None}]}, "value"),
    formatted("sharegpt value a number", "sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "value"),
    formatted(
        "sharegpt call no JSON", "sharegpt", {"conversations": [{"from": "function_call", "value": "f(x)"}]}, "value"
    ),
    formatted(
        "sharegpt call deep",
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "[" * 100_000}]},
        "value",
    ),
    formatted("alpaca without output", "alpaca", {"instruction": "a"}, "'output'"),
    formatted("alpaca all empty", "alpaca", {"instruction": "", "input": "", "output": "b"}, "instruction"),
    formatted("alpaca output a number", "alpaca", {"instruction": "a", "output": 3}, "output"),
    formatted("alpaca history a text", "alpaca", {"instruction": "a", "output": "b", "history": "x"}, "history"),
    formatted("alpaca history uneven", "alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history.0"),
    formatted(
        "alpaca history of numbers", "alpaca", {"instruction": "a", "output": "b", "history": [[1, 2]]}, "history"
    ),
    formatted("prompt without completion", "prompt_completion", {"prompt": "a"}, "'completion'"),
    formatted("completion a number", "prompt_completion", {"prompt": "a", "completion": 3}, "completion"),
    formatted("dialogue of numbers", "dialogue", [1, 2], "must be text"),
    formatted("dialogue empty", "dialogue", [], "empty"),
    formatted("nanochat row a list of texts", "nanochat", ["a", "b"], "messages.0"),
    # `inspect` shows pairs
    data(
        "preference pairs", "bad.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "bad.jsonl", "preference"
    )._replace(commands=data_commands("bad.jsonl")[:2]),
    data("no known format", "bad.jsonl", b'{"a": 1}\n', "bad.jsonl", "no known format", "'a'"),
    data(
        "no reply to train on",
        "bad.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}]}\n',
        "bad.jsonl, row 0",
        "no token to train on",
        entry=", format: messages",
    ),
]

HEAD = "model: model\ndata: [{path: good.jsonl}]\n"

RECIPES: list[Case] = [
    recipe("recipe without bytes", "", "recipe.yaml", "mapping"),
    recipe("a list", "- model: model\n", "recipe.yaml", "mapping"),
    recipe("a text", "model", "recipe.yaml", "mapping"),
    recipe("tabs", "model: model\ndata:\n\t- path: good.jsonl\n", "recipe.yaml", "line 3"),
    recipe("open bracket", "model: [", "recipe.yaml", "line"),
    recipe("utf-16", HEAD.encode("utf-16"), "recipe.yaml", "UTF-16"),
    recipe("latin-1", "model: é\n".encode("latin-1"), "recipe.yaml", "UTF-8"),
    recipe("nul", b"model: \0", "recipe.yaml"),
    recipe("control character", b"model: \x07", "recipe.yaml"),
    recipe("a key twice", HEAD + "max_tokens: 5\nmax_tokens: 6\n", "recipe.yaml", "max_tokens", "twice", "line 4"),
    recipe("a nested key twice", HEAD + "train: {seed: 1, seed: 2}\n", "recipe.yaml", "seed", "twice"),
    recipe("alias of itself", HEAD + "train: &a {seed: *a}\n", "recipe.yaml"),
    recipe("cyclic merge", HEAD + "train: &a {<<: *a}\n", "recipe.yaml"),
    recipe("data in a cycle", "model: model\ndata: &a [*a]\n", "recipe.yaml"),
    recipe("python object", HEAD + "train: !!python/object/apply:os.getcwd []\n", "recipe.yaml"),
    recipe("include tag", HEAD + "train: !include recipe.yaml\n", "recipe.yaml", "!include"),
    recipe("two documents", HEAD + "---\nmodel: other\n", "recipe.yaml", "document"),
    recipe("deep", "model: " + "[" * 5000, "recipe.yaml", "nested"),
    recipe("int as key", HEAD + "3: x\n", "recipe.yaml", "3"),
    recipe("list as key", HEAD + "? [a]\n: b\n", "recipe.yaml"),
    recipe("date as key", HEAD + "2024-01-01: x\n", "recipe.yaml", "keys should be strings"),
    recipe("null as key", HEAD + "train: {~: 3}\n", "recipe.yaml", "train"),
    recipe("no model", "data: [{path: good.jsonl}]\n", "named by one of model and new_model; neither is given"),
    recipe("model null", "model:\ndata: [{path: good.jsonl}]\n", "model"),
    recipe("model a number", "model: 3\ndata: [{path: good.jsonl}]\n", "model", "3"),
    recipe("model a date", "model: 2024-01-01\ndata: [{path: good.jsonl}]\n", "model"),
    recipe("no such model", "model: nowhere/at/all\ndata: [{path: good.jsonl}]\n", "nowhere/at/all"),
    recipe("model a data file", "model: good.jsonl\ndata: [{path: good.jsonl}]\n", "good.jsonl"),
    recipe("no data", "model: model\n", "no data"),
    recipe("data a text", "model: model\ndata: good.jsonl\n", "data"),
    recipe("data an object", "model: model\ndata: {path: good.jsonl}\n", "data"),
    recipe("data of texts", "model: model\ndata: [good.jsonl]\n", "data.0"),
    recipe("data of null", "model: model\ndata: [null]\n", "data.0"),
    recipe("path and task", "model: model\ndata: [{path: a, task: spelling}]\n", "data.0", "exactly one"),
    recipe("path a number", "model: model\ndata: [{path: 3}]\n", "data.0.path"),
    recipe("unknown task", "model: model\ndata: [{task: speling}]\n", "spelling"),
    recipe("task options wrong", "model: model\ndata: [{task: spelling, task_options: {x: 1}}]\n", "x"),
    recipe("format misspelt", "model: model\ndata: [{path: a, format: sharegtp}]\n", "did you mean 'sharegpt'"),
    recipe("stop before start", "model: model\ndata: [{path: a, start: 5, stop: 2}]\n", "stop"),
    recipe("start beyond the end", "model: model\ndata: [{path: good.jsonl, start: 99}]\n", "good.jsonl", "no rows"),
    recipe("unknown setting", HEAD + "max_token: 5\n", "did you mean 'max_tokens'"),
    recipe("unknown nested setting", HEAD + "train: {epoch: 5}\n", "did you mean 'epochs'"),
    recipe("null section", HEAD + "train:\n", "train"),
    recipe("section a list", HEAD + "train: []\n", "train"),
    recipe("text for a number", HEAD + "max_tokens: many\n", "max_tokens", "'many'"),
    recipe("negative", HEAD + "max_tokens: -5\n", "max_tokens", "-5"),
    recipe("zero", HEAD + "max_tokens: 0\n", "max_tokens"),
    recipe("fraction", HEAD + "max_tokens: 1.5\n", "max_tokens", "1.5"),
    recipe("infinite", HEAD + "optimizer: {learning_rate: .inf}\n", "learning_rate"),
    recipe("not a number", HEAD + "optimizer: {learning_rate: .nan}\n", "learning_rate"),
    recipe("boolean for a number", HEAD + "max_tokens: true\n", "max_tokens"),
    recipe("integer of 100,000 digits", HEAD + "max_tokens: " + "9" * 100_000 + "\n", "recipe.yaml"),
    recipe("integer beyond 64 bits", HEAD + "train: {seed: 99999999999999999999999999}\n", "seed"),
    recipe("too many tokens", HEAD + "max_tokens: 99999999999999999999\n", "max_tokens"),
    recipe("override without =", HEAD, "name=value", command=("plan", "recipe.yaml", "--set", "x")),
    recipe("override of a plain value", HEAD, "plain value", command=("plan", "recipe.yaml", "--set", "model.x=1")),
    recipe("override of no item", HEAD, "no item", command=("plan", "recipe.yaml", "--set", "data.7.path=x")),
    recipe("override that is no YAML", HEAD, "--set", command=("plan", "recipe.yaml", "--set", "train.seed=[")),
    recipe(
        "override that is deep", HEAD, "--set", command=("plan", "recipe.yaml", "--set", "train.seed=" + "[" * 5000)
    ),
    recipe("rows that are none", HEAD, "no row", command=("inspect", "recipe.yaml", "--rows", "a:b")),
    recipe("convert to nothing", HEAD, "--to", command=("convert", "good.jsonl", "o.jsonl", "--to", "x")),
    recipe(
        "convert from nothing",
        HEAD,
        "format",
        command=("convert", "good.jsonl", "o.jsonl", "--to", "messages", "--from", "x"),
    ),
    recipe(
        "convert onto the source", HEAD, "exists", command=("convert", "good.jsonl", "good.jsonl", "--to", "messages")
    ),
    recipe(
        "convert with a wrong word",
        HEAD,
        "on_bad_row",
        command=("convert", "good.jsonl", "o.jsonl", "--to", "messages", "--on-bad-row", "x"),
    ),
]

CASES = [*ROWS, *MESSAGES, *FORMATS, *RECIPES]

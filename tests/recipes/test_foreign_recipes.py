"""Configurations of LLaMA-Factory, TRL and Axolotl read as recipes: what maps, what is named, what rows they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import load_conversations
from chatwright.errors import ConfigError, UserError
from chatwright.recipes.foreign_recipes import ForeignRecipe, read_foreign_recipe
from chatwright.recipes.run_settings import RunSettings, load_recipe
from chatwright.settings import build, parse_yaml
from shared_files import shared


def read(folder: Path, config: dict[str, Any]) -> ForeignRecipe:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return read_foreign_recipe(path)


def losses(found: ForeignRecipe) -> dict[str, str]:
    return {key: why for key, _, why in found.unmapped}


def rows_of(entry: dict[str, Any]) -> list[Conversation]:
    settings = build(DataSettings, entry, "entry")
    path = settings.path or ""
    return load_conversations(path, format=settings.format, renames=settings.renames, stop=settings.stop).conversations


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.parts[0].text) for message in conversation.messages]


# LLaMA-Factory


@pytest.fixture
def factory(tmp_path: Path):
    """A folder with dataset_info.json and files; gives a function that imports a training file in it."""

    def make(infos: dict[str, Any], files: dict[str, Any], **config: Any) -> ForeignRecipe:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "dataset_info.json").write_text(json.dumps(infos))
        for name, rows in files.items():
            (data / name).write_text(json.dumps(rows))
        base = {"model_name_or_path": "me/base", "stage": "sft", "dataset": ",".join(infos)}
        return read(tmp_path, base | config)

    return make


def test_a_llama_factory_training_file(factory):
    found = factory(
        {"me": {"file_name": "me.json"}},
        {
            "me.json": [
                {"instruction": "a", "input": "b", "output": "c", "system": "never read", "history": [["x", "y"]]}
            ]
        },
        finetuning_type="lora",
        lora_target="q_proj,v_proj",
        template="llama3",
        cutoff_len=512,
        max_samples=9,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=1e-4,
        num_train_epochs=3.0,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        val_size=0.1,
        eval_strategy="steps",
        eval_steps=500,
        bf16=True,
        overwrite_cache=True,
        mystery=1,
        output_dir="saves/x",
    )
    recipe = build(RunSettings, found.recipe, "r")
    assert (found.system, recipe.model, recipe.out) == ("LLaMA-Factory", "me/base", "saves/x")
    assert (recipe.max_tokens, str(recipe.overflow)) == (512, "truncate")
    assert recipe.adapter is not None
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.targets) == (8, 16, ("q_proj", "v_proj"))
    assert (recipe.packing.by, recipe.packing.examples_per_step, recipe.packing.tokens_per_pack) == (
        "examples",
        16,
        1024,
    )
    assert (recipe.optimizer.learning_rate, recipe.schedule.name, recipe.schedule.warmup_fraction) == (
        1e-4,
        "cosine",
        0.1,
    )
    assert (recipe.train.epochs, recipe.train.dtype, recipe.eval.every) == (3.0, "bfloat16", 500)
    assert recipe.heldout.share == 0.1
    assert losses(found).keys() == {"template", "overwrite_cache", "mystery"}
    assert ("lora_alpha (default)", "adapter.alpha: 16.0") in found.mapped
    (conversation,) = rows_of(found.recipe["data"][0])
    assert turns(conversation) == [("user", "a\nb"), ("assistant", "c")], "columns that aren't named aren't read there"


def test_llama_factory_columns_and_tags(factory):
    infos = {
        "alpaca": {"file_name": "a.json", "columns": {"prompt": "q", "response": "r", "system": "s", "history": "h"}},
        "talk": {
            "file_name": "t.json",
            "formatting": "sharegpt",
            "columns": {"messages": "thread", "tools": "functions"},
            "tags": {
                "role_tag": "who",
                "content_tag": "says",
                "user_tag": "asker",
                "assistant_tag": "bot",
                "function_tag": "call",
                "observation_tag": "result",
                "system_tag": "rule",
            },
        },
        "openai": {
            "file_name": "o.json",
            "formatting": "openai",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
    }
    says = [
        ("rule", "be"),
        ("asker", "hi"),
        ("call", '{"name": "f", "arguments": {"a": 1}}'),
        ("result", "2"),
        ("bot", "yo"),
    ]
    files = {
        "a.json": [{"q": "a", "r": "b", "s": "sys", "h": [["x", "y"]], "input": "unread"}],
        "t.json": [{"thread": [{"who": who, "says": text} for who, text in says], "functions": '[{"name": "f"}]'}],
        "o.json": [{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}],
    }
    alpaca, talk, openai = [rows_of(entry)[0] for entry in factory(infos, files).recipe["data"]]
    assert turns(alpaca) == [("system", "sys"), ("user", "x"), ("assistant", "y"), ("user", "a"), ("assistant", "b")]
    assert [role for role, _ in turns(talk)] == ["system", "user", "assistant", "tool", "assistant"]
    assert talk.messages[2].parts[0].kind == "tool_call" and talk.messages[2].parts[0].tool == "f"
    assert talk.tools
    assert turns(openai) == [("user", "1"), ("assistant", "2")]


def test_what_llama_factory_data_has_no_place_is_named(factory):
    infos = {
        "pairs": {"file_name": "p.json", "ranking": True, "formatting": "sharegpt"},
        "kto": {"file_name": "k.json", "columns": {"kto_tag": "label"}},
        "scope": {"ms_hub_url": "a/b"},
        "seen": {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "subset": "en", "columns": {"images": "pictures"}},
        "folder": {"hf_hub_url": "a/b", "folder": "x/y", "split": "test"},
        "cloud": {"cloud_file_name": "s3://bucket/a.jsonl", "num_samples": 7},
    }
    found = factory(infos, {}, streaming=True)
    assert [entry["path"] for entry in found.recipe["data"]] == [
        "hub:a/b:en/train",
        "hf://datasets/a/b/x/y",
        "s3://bucket/a.jsonl",
    ]
    assert [entry.get("hub_mode") for entry in found.recipe["data"]] == ["streaming", None, None]
    assert found.recipe["data"][2]["max_rows"] == 7
    why = losses(found)
    assert "preference" in why["pairs.ranking"] and "preference" in why["kto.columns"]
    assert {"scope.file_name", "scope.ms_hub_url", "seen.ms_hub_url", "seen.columns.images"} <= why.keys()
    with pytest.raises(UserError, match=r"no data that can be trained on.*preference data"):
        factory({"pairs": infos["pairs"]}, {})


def test_llama_factory_interleaving_becomes_weights(factory):
    infos = {"a": {"hf_hub_url": "x/a"}, "b": {"hf_hub_url": "x/b"}}
    found = factory(infos, {}, mix_strategy="interleave_under", interleave_probs="0.7,0.3")
    assert [entry["weight"] for entry in found.recipe["data"]] == [0.7, 0.3]
    assert found.recipe["mixture"] == {"until": "first"}
    found = factory(
        infos | {"c": {"ms_hub_url": "x"}}, {}, mix_strategy="interleave_over", interleave_probs="0.5,0.3,0.2"
    )
    assert "interleave_probs" in losses(found) and "weight" not in found.recipe["data"][0]


def test_llama_factory_mistakes_are_named(factory, tmp_path):
    with pytest.raises(UserError, match="no data set 'other'"):
        factory({"a": {"file_name": "a.json"}}, {}, dataset="other")
    with pytest.raises(UserError, match=r"no nowhere/dataset_info\.json"):
        factory({}, {}, dataset="a", dataset_dir="nowhere")
    with pytest.raises(UserError, match="stage: dpo"):
        factory({"a": {"hf_hub_url": "x/a"}}, {}, stage="dpo")
    (tmp_path / "data" / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="can't be read"):
        read(tmp_path, {"model_name_or_path": "m", "dataset": "a", "stage": "sft"})


def test_real_files_are_read_as_llama_factory_reads_them(factory):
    path = shared("data/sft/glaive_toolcall_en_demo.json")
    columns = {"messages": "conversations", "tools": "tools"}
    infos = {
        "glaive": {"file_name": str(path), "formatting": "sharegpt", "columns": columns},
        "identity": {"file_name": str(shared("data/sft/identity.json"))},
    }
    glaive, identity = [rows_of(entry) for entry in factory(infos, {}).recipe["data"]]
    raw = json.loads(path.read_text(encoding="utf-8"))
    names = {
        "human": "user",
        "gpt": "assistant",
        "function_call": "assistant",
        "observation": "tool",
        "system": "system",
    }
    for conversation, row in zip(glaive, raw, strict=True):
        assert [part for m in conversation.messages for part in [m.role] * len(m.parts)] == [
            names[turn["from"]] for turn in row["conversations"]
        ]
        assert [tool["function"]["name"] if "function" in tool else tool["name"] for tool in conversation.tools] == [
            tool["name"] for tool in json.loads(row["tools"] or "[]")
        ]
    assert len(identity) == 91 and turns(identity[0])[0] == ("user", "hi")


# TRL


def test_a_trl_configuration(tmp_path):
    found = read(
        tmp_path,
        {
            "model_name_or_path": "Qwen/Qwen3-0.6B",
            "dataset_name": "trl-lib/Capybara",
            "dataset_config": "en",
            "learning_rate": "2.0e-5",
            "num_train_epochs": 1,
            "packing": True,
            "max_length": 4096,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "assistant_only_loss": True,
            "eval_strategy": "steps",
            "eval_steps": 100,
            "use_peft": True,
            "lora_r": 32,
            "lora_alpha": 16,
            "lora_target_modules": ["q_proj", "v_proj"],
            "load_in_4bit": True,
            "warmup_steps": 0.1,
            "output_dir": "out",
        },
    )
    recipe = build(RunSettings, found.recipe, "r")
    assert found.system == "TRL"
    assert [e.path for e in (*recipe.data, *recipe.heldout.data)] == [
        "hub:trl-lib/Capybara:en/train",
        "hub:trl-lib/Capybara:en/test",
    ]
    assert (recipe.packing.by, recipe.packing.packs_per_step, recipe.packing.tokens_per_pack) == ("tokens", 16, 4096)
    assert recipe.adapter is not None
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (32, 16, 0.05)
    assert (recipe.schedule.name, recipe.schedule.warmup_fraction) == ("linear", 0.1)
    assert (recipe.optimizer.learning_rate, recipe.eval.every) == (2e-5, 100)
    assert str(recipe.template.train_on) == "assistant"
    assert (recipe.adapter.base, recipe.adapter.double_quantization) == ("nf4", False)
    assert not losses(found)


def test_a_trl_mixture_of_files_and_hub_sets(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    found = read(
        tmp_path,
        {
            "model_name_or_path": "m/n",
            "max_length": None,
            "datasets": [
                {"path": "json", "data_files": "rows.jsonl", "split": "train"},
                {"path": "a/b", "name": "c", "split": "train[:10]", "columns": ["messages"]},
                {"path": "a/b", "data_files": ["x.jsonl", "y.jsonl"]},
            ],
            "test_split_size": 0.1,
            "lora_r": 8,
        },
    )
    recipe = build(RunSettings, found.recipe, "r")
    assert [entry.path for entry in recipe.data] == [
        str(tmp_path / "rows.jsonl"),
        "hub:a/b:c/train[:10]",
        "hf://datasets/a/b/x.jsonl",
        "hf://datasets/a/b/y.jsonl",
    ]
    assert (recipe.heldout.share, recipe.adapter, str(recipe.overflow)) == (0.1, None, "error")
    assert turns(rows_of(found.recipe["data"][0])[0]) == [("user", "a"), ("assistant", "b")]
    assert losses(found).keys() == {"max_length", "datasets[1].columns", "assistant_only_loss", "lora_r"}
    assert "every token" in losses(found)["assistant_only_loss"]


# Axolotl


def test_an_axolotl_configuration(tmp_path):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo", "learn": True}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"turns": talk}) + "\n")
    found = read(
        tmp_path,
        {
            "base_model": "NousResearch/Llama-3.2-1B",
            "datasets": [
                {
                    "path": "talk.jsonl",
                    "ds_type": "json",
                    "split": "train",
                    "type": "chat_template",
                    "field_messages": "turns",
                    "message_property_mappings": {"role": "from", "content": "value"},
                    "message_field_training": "learn",
                    "roles_to_train": ["assistant"],
                    "train_on_eos": "turn",
                },
                {"path": "tatsu-lab/alpaca", "type": "alpaca", "revision": "v1"},
                {"path": "x/y", "type": "completion"},
                {"path": "x/z", "type": {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}"}},
            ],
            "chat_template": "chatml",
            "sequence_len": 2048,
            "sample_packing": True,
            "val_set_size": 0.05,
            "num_epochs": 2,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "adapter": "qlora",
            "load_in_4bit": True,
            "lora_r": 32,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "lora_target_linear": True,
            "lora_target_modules": None,
            "optimizer": "adamw_bnb_8bit",
            "learning_rate": 0.0002,
            "lr_scheduler": "cosine",
            "warmup_steps": 10,
            "loraplus_lr_ratio": 16,
            "weight_decay": 0.0,
            "evals_per_epoch": 4,
            "special_tokens": {"pad_token": "<|end_of_text|>"},
            "wandb_project": "mine",
        },
    )
    recipe = build(RunSettings, found.recipe, "r")
    assert found.system == "Axolotl"
    assert [entry.path for entry in recipe.data] == [
        str(tmp_path / "talk.jsonl"),
        "hub:tatsu-lab/alpaca@v1/train",
        "hub:x/z/train",
    ]
    (conversation,) = rows_of(found.recipe["data"][0])
    assert turns(conversation) == [("user", "hi"), ("assistant", "yo")]
    assert [message.train for message in conversation.messages] == [None, True]
    assert recipe.data[2].columns == {"instruction": "q", "output": "a"}
    assert (recipe.max_tokens, str(recipe.overflow), recipe.packing.packs_per_step) == (2048, "drop", 8)
    assert (recipe.template.format, recipe.optimizer.name, recipe.schedule.warmup_steps) == ("chatml", "adamw8bit", 10)
    assert recipe.optimizer.rules[0].multiplier == 16
    assert recipe.adapter is not None and recipe.adapter.targets == ("all-linear",)
    assert (recipe.heldout.share, recipe.tracking.wandb_project) == (0.05, "mine")
    why = losses(found)
    assert (recipe.adapter.base, recipe.adapter.double_quantization) == ("nf4", True)
    assert {"datasets[2].type", "datasets[3].type.format", "special_tokens"} <= why.keys()
    assert not {"adapter", "load_in_4bit"} & why.keys()
    assert "evals_per_epoch" in why and "weight_decay" not in why
    with pytest.raises(UserError, match="rl: dpo"):
        read(tmp_path, {"base_model": "m", "rl": "dpo", "datasets": []})


def test_axolotl_roles_stores_and_test_sets(tmp_path):
    found = read(
        tmp_path,
        {
            "base_model": "m/n",
            "excess_length_strategy": "truncate",
            "datasets": [
                {
                    "path": "s3://bucket/a.parquet",
                    "type": "chat_template",
                    "roles": {"user": ["asker", "user"], "assistant": ["bot"], "narrator": ["n"]},
                    "roles_to_train": ["user", "assistant"],
                    "train_on_eos": "last",
                }
            ],
            "test_datasets": [{"path": "a/b", "split": "test", "type": "chat_template"}],
        },
    )
    entry = found.recipe["data"][0]
    assert entry["path"] == "s3://bucket/a.parquet" and entry["roles"] == {"user": ["asker"], "assistant": ["bot"]}
    assert found.recipe["heldout"]["data"][0]["path"] == "hub:a/b/test"
    assert found.recipe["overflow"] == "truncate"
    assert {"datasets[0].roles", "datasets[0].roles_to_train", "datasets[0].train_on_eos"} <= losses(found).keys()


# all of them


CONFIGS: list[dict[str, Any]] = [
    {"model_name_or_path": "m/n", "dataset_name": "a/b"},
    {"base_model": "m/n", "datasets": [{"path": "a/b", "type": "chat_template"}]},
    {"model_name_or_path": "m/n", "dataset": "a/b", "dataset_dir": "ONLINE", "stage": "sft", "finetuning_type": "full"},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "more",
    [
        {"weird": {"a": [1]}, "seed": 7, "max_grad_norm": 0, "max_steps": -1, "report_to": ["tensorboard", "mlflow"]},
        {
            "gradient_checkpointing": True,
            "adam_beta2": 0.95,
            "save_strategy": "epoch",
            "logging_steps": 5,
            "fp16": True,
        },
        {"max_steps": 30, "eval_steps": 5, "eval_strategy": "no", "save_steps": 0.2, "weight_decay": "0.1"},
    ],
)
def test_every_key_is_mapped_or_named_and_the_written_recipe_is_the_recipe(tmp_path, config, more):
    found = read(tmp_path, config | more)
    build(RunSettings, found.recipe, "r")
    named = {part.removesuffix(" (default)") for key, _ in found.mapped for part in key.split(" × ")}
    for key in config | more:
        assert key in named or key in losses(found), key
    assert parse_yaml(found.text("config.yaml"), "text") == json.loads(json.dumps(found.recipe))


def test_other_files_are_no_configurations(tmp_path):
    for config in ({"model": "m", "data": [{"path": "a"}]}, {"a": 1}, {"model_name_or_path": "x"}):
        with pytest.raises(UserError, match="no configuration of LLaMA-Factory, TRL or Axolotl"):
            read(tmp_path, config)


@pytest.mark.parametrize("config", CONFIGS)
def test_training_by_such_a_file_says_to_import_it(tmp_path, config):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"not a recipe\n.*import-recipe"):
        load_recipe(str(tmp_path / "c.yaml"))

"""TRL's few lines give the run of the command line, bit for bit; what has no place in a recipe is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import chatwright
from chatwright import LoraSettings, SFTConfig, SFTTrainer
from chatwright.checkpoints.store import latest_checkpoint
from chatwright.checkpoints.tensors import load_tensors
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import ConfigError, DataError
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.planning import plan_run
from chatwright.recipes.sft_trainer import recipe_of
from tiny_model import make_tiny_model
from training_runs import conversations, differing_bits, run_command, write_recipe, write_rows

QUIET = ("train.device=cpu", "train.dtype=float32", "train.threads=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


def config(out: Path, **more: Any) -> SFTConfig:
    """The seed's shape: two rows a device, 256 tokens, some steps."""
    values = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_length": 160, "max_steps": 3}
    return SFTConfig(output_dir=out, **{**values, "learning_rate": 1e-3, "seed": 3, **more})


def trained(out: Path) -> dict[str, torch.Tensor]:
    folder = latest_checkpoint(out)
    assert folder is not None
    return load_tensors(folder / "model.safetensors")[0]


@pytest.mark.slow
def test_a_run_equals_the_command_lines_bit_for_bit(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", conversations(12))
    trainer = SFTTrainer(str(base), config(tmp_path / "api"), train_dataset=str(data), overrides=QUIET)
    result = trainer.train()
    assert result.progress.step == 3
    settings = trainer.settings.model_copy(update={"out": str(tmp_path / "cli")})
    run_command("train", write_recipe(settings, tmp_path / "recipe.yaml"))
    assert differing_bits(tmp_path / "api", tmp_path / "cli") == []


def test_rows_in_memory_of_every_kind_train_alike(base: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = conversations(12)
    given = {
        "list": rows,
        "path": str(write_rows(tmp_path / "rows.jsonl", rows)),
        "dataset": datasets.Dataset.from_list(rows),
    }
    for name, train_dataset in given.items():
        SFTTrainer(str(base), config(tmp_path / name, max_steps=2), train_dataset, overrides=QUIET).train()
    first = trained(tmp_path / "list")
    for name in ("path", "dataset"):
        other = trained(tmp_path / name)
        assert all(torch.equal(first[key], other[key]) for key in first), name


def test_formatting_func_makes_messages_texts_or_says_what_is_wrong(base: Path, tmp_path: Path) -> None:
    rows = [{"q": f"What is {n}?", "a": f"It is {n}."} for n in range(6)]

    def messages(row: Any) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]

    def data_of(function: Any) -> RunData:
        trainer = SFTTrainer(str(base), config(tmp_path / "run"), rows, formatting_func=function, overrides=QUIET)
        found = build_data(trainer.settings, trainer._sources)
        assert isinstance(found, RunData)
        return found

    whole = data_of(messages)
    text = whole.text.tokenizer.decode(whole.store.example(0)[0].tolist())
    assert "What is 0?" in text and "It is 0." in text
    assert 0 < whole.store.supervised(0) < whole.store.lengths[0] // 2
    same = data_of(lambda row: {"messages": messages(row)})
    assert same.store.example(3)[0].tolist() == whole.store.example(3)[0].tolist()
    plain = data_of(lambda row: f"### Question: {row['q']}\n### Answer: {row['a']}")
    assert plain.store.supervised(0) == plain.store.lengths[0] - 1, "a text is trained whole, as in TRL"
    as_objects = data_of(lambda row: Conversation((Message.of("user", row["q"]), Message.of("assistant", row["a"]))))
    assert as_objects.store.example(1)[0].tolist() == whole.store.example(1)[0].tolist()
    with pytest.raises(DataError, match="returned a int for row 0"):
        data_of(lambda row: 1)


def test_peft_configs_become_adapters_and_are_saved_for_peft(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_rslora=True)
    trainer = SFTTrainer(
        str(base), config(tmp_path / "run", max_steps=2), conversations(12), peft_config=lora, overrides=QUIET
    )
    found = trainer.settings.adapter
    assert found is not None and (found.rank, found.alpha, found.scaling) == (4, 8, "rslora")
    assert found.targets == ("down_proj", "q_proj")
    trainer.train()
    report = trainer.save_model(tmp_path / "saved")
    assert report.kind == "adapter"
    again = peft.PeftConfig.from_pretrained(tmp_path / "saved")
    assert (again.r, again.lora_alpha, set(again.target_modules)) == (4, 8, {"q_proj", "down_proj"})
    ours = SFTTrainer(str(base), config(tmp_path / "x"), conversations(4), peft_config=LoraSettings(rank=2))
    assert ours.settings.adapter == LoraSettings(rank=2)
    usual = recipe_of({"output_dir": "x"}, peft.LoraConfig())
    assert usual["adapter"]["targets"] == ["q_proj", "v_proj"]
    with pytest.raises(ConfigError, match=r"(?s)use_dora = True isn't supported.*init_lora_weights = False"):
        recipe_of({"output_dir": "x"}, peft.LoraConfig(use_dora=True, init_lora_weights=False))


def test_a_four_bit_config_becomes_an_nf4_base() -> None:
    transformers = pytest.importorskip("transformers")
    quantized = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    kwargs = {"output_dir": "x", "model_init_kwargs": {"quantization_config": quantized}}
    made = recipe_of(kwargs, LoraSettings(rank=2))["adapter"]
    assert (made["rank"], made["base"], made["double_quantization"]) == (2, "nf4", True)
    with pytest.raises(ConfigError, match="give peft_config"):
        recipe_of(kwargs)
    eight = {"output_dir": "x", "model_init_kwargs": {"quantization_config": {"load_in_8bit": True}}}
    with pytest.raises(ConfigError, match="only load_in_4bit"):
        recipe_of(eight, LoraSettings())


def test_arguments_become_the_recipe_that_their_defaults_mean(base: Path, tmp_path: Path) -> None:
    made = SFTTrainer(str(base), SFTConfig(output_dir=tmp_path), conversations(4)).settings
    assert (made.max_tokens, str(made.overflow), made.train.epochs) == (1024, "truncate", 3)
    assert (made.packing.by, made.packing.examples_per_step) == ("examples", 8)
    assert (made.optimizer.learning_rate, made.schedule.name) == (2e-5, "linear")
    assert str(made.template.train_on) == "assistant"
    whole = SFTTrainer(
        str(base), {"output_dir": str(tmp_path), "packing": True, "assistant_only_loss": False}, conversations(4)
    ).settings
    assert (whole.packing.by, whole.packing.packs_per_step, str(whole.template.train_on)) == ("tokens", 8, "everything")
    stream = recipe_of({"output_dir": "x", "packing": True, "packing_strategy": "wrapped", "max_length": 64})
    assert stream["packing"] == {"by": "constant_length", "tokens_per_pack": 64, "packs_per_step": 8}
    long = [{"prompt": "Tell me.", "completion": "a cat counts " * 60}]
    wrapped = {"packing": True, "packing_strategy": "wrapped", "max_length": 64}
    trainer = SFTTrainer(str(base), SFTConfig(tmp_path, **wrapped), long, overrides=QUIET)
    data = build_data(trainer.settings, trainer._sources)
    assert isinstance(data, RunData)
    text = "".join(data.text.tokenizer.decode(data.store.example(n)[0].tolist()) for n in range(len(data.store)))
    assert text.count("a cat counts") == 60, "a block ends, and the next one goes on"
    said = SFTTrainer(str(base), SFTConfig(tmp_path), conversations(4), overrides=["template.format=role_text"])
    assert said.settings.template.format == "role_text"


def test_max_steps_wins_over_epochs_as_in_transformers(base: Path, tmp_path: Path) -> None:
    """8 rows by 4 are 2 steps an epoch; 7 steps go through them again and again."""
    trainer = SFTTrainer(
        str(base),
        SFTConfig(tmp_path / "run", max_length=160, per_device_train_batch_size=4, max_steps=7, num_train_epochs=1),
        conversations(8),
        overrides=QUIET,
    )
    data = build_data(trainer.settings, trainer._sources)
    assert isinstance(data, RunData)
    assert (data.num_steps, data.plan.num_epochs) == (7, 4)
    assert plan_run(trainer.settings, data).epochs == 4
    with pytest.raises(ConfigError, match="epochs: null needs max_steps"):
        SFTTrainer(str(base), SFTConfig(tmp_path), conversations(8), overrides=["train.epochs=null"])


def test_rows_of_plain_text_are_trained_whole_as_in_trl(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"The cat counts {n}.", "story": f"A bird flies over {n} hills."} for n in range(4)]
    talks = [{"messages": conversations(1)[0]["messages"], "text": "not this"}] * 4
    datasets = pytest.importorskip("datasets")
    given = {
        "cat": (rows, {}),
        "bird": (rows, {"dataset_text_field": "story"}),
        "hills": (datasets.Dataset.from_list(rows), {"dataset_text_field": "story"}),
        "A bird": (datasets.Dataset.from_list(rows).to_iterable_dataset(), {"dataset_text_field": "story"}),
        "Tell me": (talks, {}),
    }
    for wanted, (train_dataset, more) in given.items():
        trainer = SFTTrainer(str(base), SFTConfig(tmp_path, max_length=160, **more), train_dataset, overrides=QUIET)
        data = build_data(trainer.settings, trainer._sources)
        assert isinstance(data, RunData)
        assert wanted in data.text.tokenizer.decode(data.store.example(0)[0].tolist()), wanted
        if wanted != "Tell me":
            assert data.store.supervised(0) == data.store.lengths[0] - 1


def test_what_says_how_things_are_anyway_is_taken() -> None:
    idle = {"eval_strategy": "no", "save_strategy": "no", "save_steps": 5, "push_to_hub": False, "do_eval": False}
    idle |= {"remove_unused_columns": False, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert recipe_of({"output_dir": "x", **idle}) == recipe_of({"output_dir": "x"})
    assert recipe_of({"output_dir": "x", "use_cpu": True})["train"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("args", "more", "says"),
    [
        (
            {"max_lenght": 5, "neftune_noise_alpha": 5},
            {},
            r"(?s)max_lenght: not known; did you mean max_length.*neftune_noise_alpha: the loss",
        ),
        ({"deepspeed": "z3.json"}, {}, "deepspeed: ranks come from torchrun"),
        ({"max_length": None}, {}, "max_length: None is no limit"),
        ({"packing": True, "packing_strategy": "bfd_split"}, {}, "packing_strategy: 'bfd_split' isn't known here"),
        ({"max_step": 3}, {}, "max_step: not known; did you mean max_steps?"),
        ({"colour": 3}, {}, "colour: not known; the names are TRL's"),
        ({"learning_rate": "fast", "max_step": 3}, {}, r"(?s)learning_rate: must be a number, found 'fast'.*max_step:"),
        ({"save_steps": "ten"}, {}, "save_steps: must be a number, found 'ten'"),
        ({"max_length": [1]}, {}, r"max_length: must be a number, found \[1\]"),
        ({"load_best_model_at_end": True}, {}, "load_best_model_at_end"),
        ({"dataset_text_field": "story"}, {"train_dataset": "rows.jsonl"}, "a file's texts stand in 'text'"),
        ({}, {"train_dataset": None}, "train_dataset: give rows"),
        ({}, {"train_dataset": 3}, "train_dataset: give rows, or the path of a file or folder, found a int"),
        ({}, {"train_dataset": {"train": [], "test": []}}, "a mapping isn't rows; give one of its parts: train, test"),
        ({}, {"model": object()}, "give a name or folder, found a object"),
        ({}, {"eval_dataset": [{}]}, "eval_dataset: give the path"),
        ({}, {"peft_config": 3}, "give a LoraConfig or LoraSettings, found a int"),
        ({}, {"train_dataset": "rows.jsonl", "formatting_func": str}, "formatting_func takes rows"),
    ],
)
def test_what_has_no_place_is_named(
    base: Path, tmp_path: Path, args: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    given = {"model": str(base), "train_dataset": conversations(4), **more}
    with pytest.raises(ConfigError, match=says):
        SFTTrainer(args=SFTConfig(output_dir=tmp_path, **args), **given)


def test_it_is_at_the_librarys_door() -> None:
    assert {"SFTTrainer", "SFTConfig", "LoraSettings"} <= set(chatwright.__all__)
    assert repr(SFTConfig("x", max_steps=2)) == "SFTConfig(output_dir='x', max_steps=2)"

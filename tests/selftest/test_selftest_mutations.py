"""Each law is broken on purpose, one defect at a time: the selftest must fail, and name that law."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipe import tiny_settings
from torch import nn

from chatwright.adapters.lora_linear import LoraLinear
from chatwright.batches.collate import collate
from chatwright.batches.packed_batch import PackedBatch
from chatwright.layouts import SegmentLayout
from chatwright.losses.linear_cross_entropy import weighted_nll
from chatwright.losses.loss_sum import LossSum
from chatwright.models.transformer import CausalLM
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.runtime import Runtime
from chatwright.selftest.laws import LAWS, check_recipe
from chatwright.templates.base import Template
from chatwright.templates.native import NativeTemplate
from chatwright.templates.outline import encode_outlines
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.tokenizer_files import write_files

CPU = Runtime(torch.device("cpu"))
QUICK = [name for name in LAWS if name not in ("saving", "resume", "merging")]
Patch = pytest.MonkeyPatch


def swap(monkeypatch: Patch, original: Callable[..., Any], mutant: Callable[..., Any]) -> None:
    """Put `mutant` in place of a function wherever the package has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("chatwright") and module is not None:
            for attribute, value in list(vars(module).items()):
                if value is original:
                    monkeypatch.setattr(module, attribute, mutant)


def broken(folder: Path, laws: Sequence[str], **changes: Any) -> set[str]:
    return set(check_recipe(tiny_settings(folder, **changes), CPU, laws=laws).broken)


def all_trained(example: RenderedExample) -> RenderedExample:
    return replace(example, weights=np.ones_like(example.weights))


def test_a_mask_dropped_on_the_way_to_the_store(tmp_path: Path, monkeypatch: Patch) -> None:
    original = Template.render_many

    def mutant(self: Template, *args: Any) -> list[list[RenderedExample]]:
        return [[all_trained(example) for example in group] for group in original(self, *args)]

    monkeypatch.setattr(Template, "render_many", mutant)
    assert broken(tmp_path, QUICK) == {"labels"}


def test_a_mask_dropped_in_rendering(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(*args: Any) -> list[RenderedExample]:
        return [all_trained(example) for example in encode_outlines(*args)]

    swap(monkeypatch, encode_outlines, mutant)
    assert {"mask: weights", "labels"} <= broken(tmp_path, QUICK)


def test_an_end_of_turn_that_is_not_trained(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(tokenizer: Any, outlines: Any) -> list[RenderedExample]:
        end = tokenizer.control_ids["<|im_end|>"]
        made = encode_outlines(tokenizer, outlines)
        return [replace(e, weights=np.where(e.ids == end, np.float32(0), e.weights)) for e in made]

    swap(monkeypatch, encode_outlines, mutant)
    assert {"mask: begin and stop", "mask: weights", "labels"} <= broken(tmp_path, QUICK)


def test_a_prompt_that_differs_from_training(tmp_path: Path, monkeypatch: Patch) -> None:
    original = NativeTemplate.render_prompt
    monkeypatch.setattr(NativeTemplate, "render_prompt", lambda self, c: original(self, c)[:-1])
    assert {"mask: prompt", "mask: weights"} <= broken(tmp_path, ["mask"])


@pytest.mark.parametrize("by", [-1, 1])
def test_labels_shifted_by_one(tmp_path: Path, monkeypatch: Patch, by: int) -> None:
    def mutant(*args: Any, **options: Any) -> PackedBatch:
        batch = collate(*args, **options)
        shifted = (batch.supervised_index + by).clamp(0, len(batch.input_ids) - 1)
        return replace(batch, supervised_index=shifted)

    swap(monkeypatch, collate, mutant)
    found = broken(tmp_path, QUICK)
    assert "labels" in found and not found & {"splits", "isolation"} and "mask: weights" not in found


def test_a_mean_taken_in_each_micro_batch(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(*args: Any, **options: Any) -> LossSum:
        loss = weighted_nll(*args, **options)
        return replace(loss, total=loss.total / max(loss.weight, 1e-9))

    swap(monkeypatch, weighted_nll, mutant)
    assert broken(tmp_path, QUICK) == {"packing", "splits", "chunked loss"}


def test_a_leak_between_segments(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(*args: Any, **options: Any) -> PackedBatch:
        batch = collate(*args, **options)
        return replace(batch, layout=SegmentLayout.from_lengths([len(batch.input_ids)]))

    swap(monkeypatch, collate, mutant)
    found = broken(tmp_path, QUICK)
    assert {"isolation", "packing", "splits", "serving"} <= found and "labels" not in found


def test_an_engine_whose_positions_are_off_by_one(tmp_path: Path, monkeypatch: Patch) -> None:
    original = CausalLM.forward

    def mutant(self: CausalLM, ids: Any, positions: Any, layout: Any, cache: Any = None, **rows: Any) -> Any:
        if cache is not None and any(cache.lengths):
            positions = positions + 1  # the engine counts one token too many once it decodes
        return original(self, ids, positions, layout, cache, **rows)

    monkeypatch.setattr(CausalLM, "forward", mutant)
    found = broken(tmp_path, QUICK)
    assert "serving" in found and found <= {"serving", "first token"}


def test_a_loss_with_other_targets(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(hidden: Any, head: Any, targets: Any, weights: Any, **options: Any) -> LossSum:
        return weighted_nll(hidden, head, targets.roll(1), weights, **options)

    swap(monkeypatch, weighted_nll, mutant)
    assert "chunked loss" in broken(tmp_path, QUICK)


def test_a_resume_that_loses_the_moments(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(self: MasterOptimizer, state: dict[str, torch.Tensor]) -> None:
        self.step_count = int(state["step"])
        self.update.set_step(self.step_count, {})

    monkeypatch.setattr(MasterOptimizer, "load_state_dict", mutant)
    assert broken(tmp_path, ["resume"]) == {"resume"}


@pytest.mark.slow
def test_a_resume_from_rounded_weights(tmp_path: Path, monkeypatch: Patch) -> None:
    original = MasterOptimizer.master_state

    def mutant(self: MasterOptimizer) -> dict[str, torch.Tensor]:
        return {name: tensor.bfloat16().float() for name, tensor in original(self).items()}

    monkeypatch.setattr(MasterOptimizer, "master_state", mutant)
    assert broken(tmp_path, ["resume"]) == {"resume"}


def test_a_run_that_never_repeats_is_waived_not_passed(tmp_path: Path, monkeypatch: Patch) -> None:
    original = MasterOptimizer.step
    noise = torch.Generator().manual_seed(0)

    def mutant(self: MasterOptimizer, **arguments: float) -> float:
        self.flat_gradient.mul_(1 + 0.1 * float(torch.rand((), generator=noise)))
        return original(self, **arguments)

    monkeypatch.setattr(MasterOptimizer, "step", mutant)
    report = check_recipe(tiny_settings(tmp_path), CPU, laws=["resume"])
    assert [str(outcome.status) for outcome in report.outcomes] == ["waived"]


def test_stop_ids_missing_from_the_saved_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(folder: Path, files: Any, chat_template: Any, stop_ids: Sequence[int]) -> None:
        write_files(folder, files, chat_template, stop_ids[:1])

    swap(monkeypatch, write_files, mutant)
    assert broken(tmp_path, ["saving"]) == {"stopping"}


@pytest.mark.slow
def test_weights_saved_in_lower_precision(tmp_path: Path, monkeypatch: Patch) -> None:
    from chatwright.selftest import saving

    original = saving.load_weights

    def mutant(*args: Any) -> nn.Module:
        return original(*args).bfloat16().float()

    monkeypatch.setattr(saving, "load_weights", mutant)
    assert broken(tmp_path, ["saving"]) == {"saving"}


def test_an_adapter_merged_with_the_wrong_scale(tmp_path: Path, monkeypatch: Patch) -> None:
    original = LoraLinear.merged

    def mutant(self: LoraLinear) -> tuple[nn.Linear, float]:
        self.alpha *= 2
        merged = original(self)
        self.alpha /= 2
        return merged

    monkeypatch.setattr(LoraLinear, "merged", mutant)
    adapter = {"rank": 4, "alpha": 8}
    assert broken(tmp_path, ["merging"], adapter=adapter) == {"merging"}


def test_a_program_that_stops_breaks_the_law_it_was_checked_for(tmp_path: Path, monkeypatch: Patch) -> None:
    def mutant(*args: Any, **options: Any) -> LossSum:
        loss = weighted_nll(*args, **options)
        return replace(loss, total=loss.total * float("nan"))

    swap(monkeypatch, weighted_nll, mutant)
    report = check_recipe(tiny_settings(tmp_path), CPU, laws=["gradients", "isolation"])
    assert report.broken == ["gradients"] and "not finite" in report.outcomes[0].detail

"""`chatwright trace`: the examples that made a step, with their losses."""

from __future__ import annotations

import json

from chatwright.checkpoints.chain_folder import chain_hint
from chatwright.console import out, table
from chatwright.errors import CheckpointError
from chatwright.run_folder import RunFolder


def run_trace(run: str, step: int, as_json: bool) -> None:
    """Print the examples of one step, highest loss first."""
    folder = RunFolder(run, writes=False)
    if not folder.holds_run():
        hint = chain_hint(folder.path) or "give the run folder that `chatwright train` wrote"
        raise CheckpointError("holds no run", place=run, hint=hint)
    record = folder.read_trace(step)
    if record is None:
        last = folder.last_traced_step()
        raise CheckpointError(
            f"there is no step {step}; the run has steps 1 to {last}" if last else "this run has no finished step",
            place=str(folder.path),
        )
    rows = [
        {
            "source": source,
            "row": row,
            "part": part,
            "loss": total / count if count else 0.0,
            "supervised_tokens": count,
        }
        for source, row, part, total, count in record["examples"]
    ]
    rows.sort(key=lambda item: -float(item["loss"]))
    if as_json:
        print(json.dumps({"step": step, "examples": rows}, ensure_ascii=False))
        return
    columns = ("source", "row", "part", "mean loss", "supervised tokens")
    body = [(r["source"], str(r["row"]), str(r["part"]), f"{r['loss']:.4f}", str(r["supervised_tokens"])) for r in rows]
    out().print(table(f"step {step}: {len(rows)} examples", columns, body))

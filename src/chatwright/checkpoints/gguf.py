"""Converts a GGUF file, once, into a Hugging Face folder in the cache.

The weights are expanded to float32: what a block of Q4_1 holds (float16 scale · 4-bit number + float16 minimum) fits
neither bfloat16 nor float16. The result is a re-expanded low-bit model: good to train from, no better than the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatwright.checkpoints.converted import ORIGIN_NAME, convert_once, is_converted
from chatwright.checkpoints.gguf_header import GgufHeader, read_header
from chatwright.checkpoints.gguf_tokenizer import write_tokenizer
from chatwright.errors import ModelError

_NEEDED = ("transformers", "gguf", "accelerate")
_PROBE_BYTES = 1 << 20


def convert_gguf(path: Path, cache: Path) -> Path:
    """The Hugging Face folder of a GGUF file, made on first use below `cache`, with one printed line.

    Raises:
        ModelError: if the file is damaged, its architecture, tokenizer or rope scaling can't be carried over exactly,
            or a package that is needed is missing.
    """
    path = path.resolve()
    header = read_header(path)
    name = re.sub(r"[^\w.-]+", "-", path.stem)
    folder = cache / "models" / f"{name}-{_quick_hash(path)[:12]}"
    if is_converted(folder):
        return folder
    _refuse(header, path)
    return convert_once(folder, path, lambda aside: _convert(path, header, aside))


def _quick_hash(path: Path) -> str:
    """sha256 over size, head and tail: enough to tell files apart that a user keeps."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_PROBE_BYTES))
        file.seek(max(0, size - _PROBE_BYTES))
        digest.update(file.read(_PROBE_BYTES))
    return digest.hexdigest()


def _refuse(header: GgufHeader, path: Path) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = f"converting a GGUF file needs {', '.join(missing)}"
        raise ModelError(message, place=str(path), hint=f"pip install {' '.join(missing)}")
    scaling = header.metadata.get(f"{header.metadata.get('general.architecture')}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensor_names:
        raise ModelError(
            "scales its rotary embedding, which transformers doesn't carry over from GGUF: it would change unnoticed",
            place=str(path),
            hint="use the model's original Hugging Face folder",
        )


def _convert(path: Path, header: GgufHeader, folder: Path) -> None:
    """Weights and configuration through transformers, loaded only here; the tokenizer through our own table."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    quantized = getattr(transformers, "GgufConfig", None)  # newer versions keep the blocks unless told otherwise
    extra = {} if quantized is None else {"quantization_config": quantized(dequantize=True)}
    load_model: Any = transformers.AutoModelForCausalLM.from_pretrained
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that no setting turns off
            model, report = load_model(path.parent, dtype=torch.float32, output_loading_info=True, **options, **extra)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
    except (ValueError, KeyError, NotImplementedError) as error:
        hint = "use the model's original Hugging Face folder"
        raise ModelError(f"transformers can't convert it: {error}", place=str(path), hint=hint) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise ModelError(f"holds no tensors for {missing}", place=str(path), hint="download it again")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stop_ids = write_tokenizer(header, tokenizer.backend_tokenizer.to_str(), folder)
    config = _clean(config) | {"eos_token_id": stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    origin = {
        "source": path.name,
        "quick_sha256": _quick_hash(path),
        "name": header.metadata.get("general.name"),
        "license": header.metadata.get("general.license"),
        "file_type": header.metadata.get("general.file_type"),
        "note": "low-bit weights expanded to float32; not the original full-precision model",
        "transformers": transformers.__version__,
    }
    (folder / ORIGIN_NAME).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _clean(config: dict[str, Any]) -> dict[str, Any]:
    """Without what varies by program version, and 1e-05 instead of the float32 9.999999747378752e-06."""
    dropped = ("transformers_version", "_model_name_or_path", "_name_or_path", "quantization_config")
    return {key: _shortest(value) for key, value in config.items() if key not in dropped}


def _shortest(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortest(item) for key, item in value.items()}
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value

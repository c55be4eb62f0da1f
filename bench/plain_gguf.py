"""Write a GGUF file whose tensors are bf16 from a quantized one, so that llama.cpp runs the weights that we run.

python bench/plain_gguf.py smollm2-q4.gguf smollm2-bf16.gguf
"""

from __future__ import annotations

import argparse

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

KEPT = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
"""Fields that the writer sets itself."""


def main() -> None:
    """Copy the metadata, expand every matrix; vectors stay float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    options = parser.parse_args()
    reader = GGUFReader(options.source)
    writer = GGUFWriter(options.target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(KEPT):
            kind = field.types[0]
            inner = field.types[1] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1:
            plain = quantize(values, GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, plain, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor.name, values.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

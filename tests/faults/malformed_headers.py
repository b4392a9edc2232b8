"""Faults of a safetensors header: what the library refuses, and what it lets pass."""

import json
from typing import Any

from faults.spoiling import Q_PROJ, SINGLE_NAME, add, content, header, with_header

DAMAGED = "is damaged or cut short"
NORM = "model.norm.weight"
TWO = {"readers": ("verify", "plugin")}
"""Of headers that take half a second."""


def entry(**changes: Any):
    """Change the header's entry of one tensor."""
    return header(lambda entries: entries[f"{Q_PROJ}.qweight"].update(changes))


def many_tensors(count: int) -> bytes:
    """A header of as many empty tensors."""
    empty = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return with_header(("{" + ",".join(f'"t{index}":{empty}' for index in range(count)) + "}").encode())


def renamed(name: str):
    """Give a tensor another name."""
    return header(lambda entries: entries.update({name: entries.pop(NORM)}))


def repeat_first_name(path) -> None:
    """The first tensor of the header once more, all zero: the library reads one of the two."""
    data = (path / SINGLE_NAME).read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    name = next(name for name in entries if name != "__metadata__")
    again = json.dumps({name: entries[name]}).encode()[1:]
    text = data[8 : 8 + length].rstrip()
    (path / SINGLE_NAME).write_bytes(with_header(text[:-1] + b"," + again, data[8 + length :]))


def overlap(entries: dict[str, Any]) -> None:
    """Two tensors share bytes."""
    entries[NORM]["data_offsets"] = entries["model.layers.0.input_layernorm.weight"]["data_offsets"]


for label, length in {"2_63": 2**63, "2_64": 2**64 - 1, "past_the_file": 2**20, "100_mb": 10**8}.items():
    add(f"header_length_{label}", "A13", content(SINGLE_NAME, length.to_bytes(8, "little") + b"{}"), DAMAGED)
add("header_million_tensors", "A13", content(SINGLE_NAME, many_tensors(1_000_000)), DAMAGED)
add("header_25000_tensors", "A13", content(SINGLE_NAME, many_tensors(25_000)), "is missing", **TWO)
add("header_of_lists", "A13", content(SINGLE_NAME, with_header(b'{"a":[' + b"[]," * 600_000 + b"[]]}")), DAMAGED, **TWO)
add(
    "header_of_objects",
    "A13",
    content(SINGLE_NAME, with_header(b'{"a":[' + b"{}," * 600_000 + b"{}]}")),
    DAMAGED,
    **TWO,
)
add("header_deep", "A13", content(SINGLE_NAME, with_header(b'{"a":' * 100_000)), "nested too deep")
add("header_deep_lists", "A13", content(SINGLE_NAME, with_header(b'{"a":' + b"[" * 10**6)), "nested too deep")
add("header_name_twice", "A13", repeat_first_name, "stands twice in one object")
add("header_bom", "A13", content(SINGLE_NAME, with_header(b"\xef\xbb\xbf{}")), "must hold JSON")
add("header_not_utf8", "A13", content(SINGLE_NAME, with_header(b'{"\xff":1}')), "must hold JSON")
add("header_list", "A13", content(SINGLE_NAME, with_header(b"[]")), "must hold a JSON object")
add("header_text", "A13", content(SINGLE_NAME, with_header(b"hello")), "must hold JSON")
add("header_empty", "A13", content(SINGLE_NAME, with_header(b"{}")), "is missing")
add("header_nan", "A13", content(SINGLE_NAME, with_header(b'{"a":NaN}')), "is no finite number")
add("header_long_integer", "A13", content(SINGLE_NAME, with_header(b'{"a":' + b"9" * 5000 + b"}")), "40 digits")
add("metadata_number", "A13", header(lambda entries: entries.update(__metadata__={"a": 1})), DAMAGED)
add("zip_behind", "A13", header(lambda entries: None, b"PK\x05\x06" + bytes(18)), DAMAGED)
add("pickle_bytes", "A13", content(SINGLE_NAME, b"\x80\x02}q\x00." * 20), DAMAGED)

for label, name in {
    "traversal": "../../etc/x", "nul": "a\0b", "escape": "\x1b[2Jgone", "newline": "a\nb", "long": "n" * 100_000,
    "none": "",
}.items():  # fmt: skip
    add(f"tensor_named_{label}", "A13", renamed(name), "names have up to 200 letters")

add("offsets_negative", "A15", entry(data_offsets=[-8, 0]), DAMAGED)
add("offsets_reversed", "A15", entry(data_offsets=[8, 0]), DAMAGED)
add("offsets_past_the_end", "A15", entry(data_offsets=[0, 2**40]), DAMAGED)
add("offsets_2_64", "A15", entry(data_offsets=[2**64 - 1, 2**64]), DAMAGED)
add("offsets_overlap", "A15", header(overlap), DAMAGED)
add("shape_negative", "A15", entry(shape=[-1, 8]), DAMAGED)
add("shape_product_wraps", "A15", entry(shape=[2**32, 2**32 + 1]), DAMAGED)
add("shape_2_63", "A15", entry(shape=[2**63, 2]), DAMAGED)
add("shape_fraction", "A15", entry(shape=[1.5, 8]), DAMAGED)
add("shape_of_other_size", "A15", entry(shape=[128, 7]), DAMAGED)
add("shape_missing", "A15", header(lambda entries: entries[NORM].pop("shape")), DAMAGED)
add("rank_1000", "A15", header(lambda entries: entries[NORM].update(shape=[1] * 1000 + [128])), "has 1001 dimensions")
add("dtype_unknown", "A6", entry(dtype="Q7"), DAMAGED)
add("dtype_fp8", "A6", entry(dtype="F8_E4M3"), "has the unsupported dtype F8_E4M3")

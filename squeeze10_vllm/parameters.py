"""Parameters that vLLM fills: each knows its place in the checkpoint and which linears of a stack have arrived.

vLLM stacks q, k, v (gate, up) into one layer and splits layers over ranks. It calls one `load_*` method per
tensor of the checkpoint; `Squeeze10Parameter` turns that call into a `Slot`, and the subclasses say what part of the
tensor belongs there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.parameter import BasevLLMParameter

from squeeze10_kernels.linear import check_tensor

Place = tuple[torch.Tensor, tuple[int, ...], tuple[slice, ...]]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one linear of a stack goes on this rank.

    Attributes:
        index: Of the linear in the stack.
        offset: Its first row on this rank.
        rows: Its rows on this rank.
        row_part: Which of `row_parts` equal parts of its rows this rank holds.
        row_parts: 1 if every rank holds all rows.
        input_part: Which of `input_parts` equal parts of its input channels this rank holds.
        input_parts: 1 if every rank holds all channels.
    """

    index: int
    offset: int
    rows: int
    row_part: int = 0
    row_parts: int = 1
    input_part: int = 0
    input_parts: int = 1


class Squeeze10Parameter(BasevLLMParameter):
    """One kind of tensor, of all linears of a stack.

    Attributes:
        tensor_names: The checkpoint's tensors that fill it, in the order of the stack.
        filled: Indices of those that have been loaded.
    """

    def __init__(
        self, data: torch.Tensor, *, weight_loader: Callable[..., None], tensor_names: tuple[str, ...]
    ) -> None:
        super().__init__(data=data, weight_loader=weight_loader)
        self.tensor_names = tensor_names
        # replaced, never changed in place: vLLM copies the attributes of an empty parameter to load a layer again
        self.filled: frozenset[int] = frozenset()

    def place(self, slot: Slot) -> Place:
        """The view of `data` that `slot` fills, the shape that its tensor has on disk, and the part to copy."""
        raise NotImplementedError

    def part(self, index: int, rows: list[int]) -> torch.Tensor:
        """The view that linear `index` of the stack fills; `rows` of each linear on this rank."""
        return self.place(Slot(index, sum(rows[:index]), rows[index]))[0]

    def missing(self) -> list[str]:
        """The checkpoint's tensors that have not been loaded."""
        return [name for index, name in enumerate(self.tensor_names) if index not in self.filled]

    def fill(self, slot: Slot, loaded: torch.Tensor) -> None:
        """Copy this rank's part of a tensor; `BadInput` names it if its shape or dtype is not as config.json says."""
        target, shape, part = self.place(slot)
        check_tensor(self.tensor_names[slot.index], tuple(loaded.shape), loaded.dtype, shape, self.dtype)
        target.copy_(loaded[part])
        self.filled |= {slot.index}

    def load_column_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        self.load_merged_column_weight(loaded_weight, shard_id=0, shard_offset=0, shard_size=self.num_rows)

    def load_row_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        slot = Slot(0, 0, self.num_rows, input_part=self.tp_rank, input_parts=self.tp_size)
        self.fill(slot, loaded_weight)

    def load_merged_column_weight(self, loaded_weight: torch.Tensor, **shard: Any) -> None:
        """`shard`: shard_id, shard_offset and shard_size, in rows of this rank."""
        slot = Slot(shard["shard_id"], shard["shard_offset"], shard["shard_size"], self.tp_rank, self.tp_size)
        self.fill(slot, loaded_weight)

    def load_qkv_weight(self, loaded_weight: torch.Tensor, **shard: Any) -> None:
        """`shard` as above, and num_heads: ranks that hold copies of a k or v head, where heads are fewer."""
        copies = 1 if shard["shard_id"] == "q" else shard["num_heads"]
        index = int(self._shard_id_as_int(shard["shard_id"]))
        part, parts = self.tp_rank // copies, self.tp_size // copies
        self.fill(Slot(index, shard["shard_offset"], shard["shard_size"], part, parts), loaded_weight)

    @property
    def num_rows(self) -> int:
        """Rows of a layer that stacks nothing; parameters without rows take all of a tensor anyway."""
        return self.shape[0]


class RowsParameter(Squeeze10Parameter):
    """`[N, width]`: rows are split with the output, packed bytes of a row with the input.

    Attributes:
        splits_input: Whether the width follows the input channels; scales belong to whole rows.
    """

    def __init__(self, data: torch.Tensor, *, splits_input: bool, **kwargs: object) -> None:
        super().__init__(data, **kwargs)  # type: ignore[arg-type]  # as Squeeze10Parameter's
        self.splits_input = splits_input

    def place(self, slot: Slot) -> Place:
        width = self.shape[1]
        first_row = slot.row_part * slot.rows
        first_byte = slot.input_part * width if self.splits_input else 0
        on_disk = (slot.rows * slot.row_parts, width * slot.input_parts if self.splits_input else width)
        part = (slice(first_row, first_row + slot.rows), slice(first_byte, first_byte + width))
        return self.data[slot.offset : slot.offset + slot.rows], on_disk, part


class InputsParameter(Squeeze10Parameter):
    """`[linears, width]`: what describes the input channels, once per linear of the stack."""

    def place(self, slot: Slot) -> Place:
        width = self.shape[1]
        first = slot.input_part * width
        return self.data[slot.index], (width * slot.input_parts,), (slice(first, first + width),)


class StreamParameter(Squeeze10Parameter):
    """`[bytes]`: row-major codes of mask `elements`, one linear after the other; never split over ranks.

    Attributes:
        sizes: Bytes of each linear.
    """

    def __init__(self, data: torch.Tensor, *, sizes: tuple[int, ...], **kwargs: object) -> None:
        super().__init__(data, **kwargs)  # type: ignore[arg-type]  # as Squeeze10Parameter's
        self.sizes = sizes

    def place(self, slot: Slot) -> Place:
        offset, size = sum(self.sizes[: slot.index]), self.sizes[slot.index]
        return self.data[offset : offset + size], (size,), (slice(None),)

"""Checks of what vLLM loaded into a layer: it neither notices missing tensors nor looks at values."""

import torch

from squeeze10_kernels import BadInput, WeightFormat, check_linear
from squeeze10_kernels.packing import pack_bits
from squeeze10_vllm.parameters import InputsParameter, Squeeze10Parameter

Parameters = dict[str, Squeeze10Parameter]
"""The parameters of one layer by suffix."""


def check_filled(parameters: Parameters) -> None:
    """Raise `BadInput` if the checkpoint lacked a tensor: the parameter would hold random bytes."""
    missing = [name for parameter in parameters.values() for name in parameter.missing()]
    if missing:
        raise BadInput(
            f"the checkpoint lacks the tensor {missing[0]}, so its layer cannot be served; "
            "fetch the checkpoint again or quantize the model again."
        )


def check_values(
    parameters: Parameters, names: tuple[str, ...], weight_format: WeightFormat, rows: list[int], K: int
) -> None:
    """Raise `BadInput`, naming the linear, unless this rank's part of each is a valid layer of its own.

    Args:
        parameters: Filled, as vLLM loaded them.
        names: The linears of the checkpoint that the layer stacks.
        weight_format: Of this rank's part: the checkpoint's with the chunks of one rank.
        rows: Of each linear on this rank.
        K: Input channels on this rank.
    """
    for index, name in enumerate(names):
        tensors = {suffix: parameter.part(index, rows) for suffix, parameter in parameters.items()}
        try:
            check_linear(tensors, weight_format, rows[index], K)
        except BadInput as error:
            raise BadInput(f"{name}.{error} Fetch the checkpoint again or quantize the model again.") from error
    for parameter in parameters.values():
        if isinstance(parameter, InputsParameter):
            check_copies(parameter)


def check_copies(parameter: InputsParameter) -> None:
    """Raise `BadInput` unless the linears of a stack, which read one input, agree on it."""
    for index, name in enumerate(parameter.tensor_names):
        if not torch.equal(parameter.data[0], parameter.data[index]):
            raise BadInput(
                f"{name} must equal {parameter.tensor_names[0]}, since both belong to one input; "
                "the checkpoint is damaged, quantize the model again."
            )


def fill_dummy(parameters: Parameters, weight_format: WeightFormat, rows: list[int], K: int) -> None:
    """Valid values for a layer that vLLM leaves unfilled: right masks, zero codes, small scales.

    Arguments as for `check_values`.
    """
    parameters["qweight"].data.zero_()
    parameters["qweight_salient"].data.zero_()
    parameters["scales"].data.fill_(1e-3)
    parameters["channel_scales"].data.fill_(1)
    for index, N in enumerate(rows):
        mask = parameters["salient_mask"].part(index, rows)
        salient = torch.zeros(8 * mask.numel(), dtype=torch.bool, device=mask.device)
        if weight_format.mask == "columns":
            count = weight_format.salient_channels(K) // weight_format.chunks
            salient.view(weight_format.chunks, -1)[:, :count] = True
        else:
            salient[: weight_format.salient_weights(N, K)] = True
        mask.copy_(pack_bits(salient).view_as(mask))

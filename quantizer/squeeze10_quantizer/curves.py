"""What a run measures while it goes, for TensorBoard."""

from pathlib import Path

from squeeze10_kernels import BadInput


class Curves:
    """Numbers by step, in an event file; none are kept without a directory."""

    def __init__(self, folder: Path | None) -> None:
        """Open a directory, `BadInput` where TensorBoard is not installed."""
        self.writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise BadInput(
                "--tensorboard needs the package tensorboard: pip install squeeze10-vllm[tensorboard]."
            ) from error
        self.writer = SummaryWriter(folder)

    def add(self, name: str, step: int, value: float) -> None:
        """A point of a curve, on disk when this returns."""
        if self.writer:
            self.writer.add_scalar(name, value, step)
            self.writer.flush()

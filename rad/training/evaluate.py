"""Loss and accuracy over a whole split."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.data import Dataset


@dataclass(frozen=True)
class Evaluation:
    """Mean cross entropy, fraction of correct predictions, and the weighted mean loss."""

    loss: float
    accuracy: float
    weighted_loss: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    batch_size: int,
    weights: Tensor | None = None,
) -> Evaluation:
    """Evaluate `model` under `eval()` on all of `split`; each module's mode is then restored.

    `weights` (N,) weigh the examples in `weighted_loss`. Sums run in float64 on the device, which
    is waited for once.
    """
    device = dataset.train_images.device
    labels_of_split = dataset.train_labels if split == "train" else dataset.test_labels
    count = len(labels_of_split)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for start in range(0, count, batch_size):
            indices = torch.arange(start, min(start + batch_size, count), device=device)
            images, labels = dataset.batch(indices, split)
            outputs = model(images)
            losses = F.cross_entropy(outputs, labels, reduction="none").double()
            sums[0] += losses.sum()
            sums[1] += (outputs.argmax(-1) == labels).sum()
            if weights is not None:
                sums[2] += losses @ weights[indices].double()
    finally:
        for module, training in modes.items():
            module.training = training
    loss, correct, weighted = sums.tolist()
    if weights is None:
        return Evaluation(loss / count, correct / count)
    return Evaluation(loss / count, correct / count, weighted / weights.sum().item())

"""A model of torchvision, as it comes, trained within a fifth of the bytes that torch keeps."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

import rad

data = load_digits()
x = torch.tensor(data.images[:8] / 16, dtype=torch.float32)[:, None]
x = F.interpolate(x, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
y = torch.tensor(data.target[:8])

torch.manual_seed(0)
plain = resnet18(num_classes=10)

saved = rad.memory.saved_bytes(lambda: F.cross_entropy(plain(x), y))
parameters = sum(p.nbytes for p in plain.parameters())
budget = parameters + saved // 5  # a budget counts the parameters, too; "60 MB" is one as well

# What each layer keeps is chosen by what the gradient's error would be, on this batch.
converted = rad.convert(
    plain, budget=budget, example=x, loss=lambda out: F.cross_entropy(out, y[: len(out)])
)
print(rad.report(converted))
print(f"torch: {saved:,} bytes saved for the backward pass")
saved = rad.memory.saved_bytes(lambda: F.cross_entropy(converted(x), y))
print(f"RAD: {saved:,} bytes saved for the backward pass")


def train(model: nn.Module, steps: int = 10) -> list[float]:
    """The loss on the batch before each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss: Tensor = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print("step  torch     RAD")
for step, losses in enumerate(zip(train(plain), train(converted), strict=True)):
    print("{:4d}  {:.4f}  {:.4f}".format(step, *losses))

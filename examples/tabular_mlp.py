"""A network on a table: 30 measurements of each of 569 tumours, benign or malignant."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn

import rad

data = load_breast_cancer()
x = torch.tensor(data.data, dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)
y = torch.tensor(data.target)

torch.manual_seed(0)
plain = nn.Sequential(
    *(nn.Linear(30, 256), nn.ReLU()),
    *(nn.Linear(256, 256), nn.ReLU()),
    *(nn.Linear(256, 256), nn.ReLU()),
    nn.Linear(256, 2),
)

# The one line that is RAD's: every layer keeps 4 bits of each number for its backward pass,
# rounded at random so that gradients are right on average. The copy has the same weights.
converted = rad.convert(plain, rad.StochasticRounding(4))

for name, model in (("torch", plain), ("RAD", converted)):
    saved = rad.memory.saved_bytes(lambda model=model: F.cross_entropy(model(x), y))
    print(f"{name}: {saved:,} bytes saved for the backward pass")


def train(model: nn.Module, steps: int = 100) -> list[float]:
    """The loss on the batch of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shuffle = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        batch = torch.randperm(len(x), generator=shuffle)[:128]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print("step  torch     RAD")
for step, losses in enumerate(zip(train(plain), train(converted), strict=True)):
    if step % 20 == 0 or step == 99:
        print("{:4d}  {:.4f}  {:.4f}".format(step, *losses))

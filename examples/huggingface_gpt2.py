"""A language model of the transformers library, converted in place, in 4 bits a number."""

import copy
import sys

import torch
from sklearn.datasets import load_breast_cancer

import rad

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    print("this example needs the transformers library: pip install transformers")
    sys.exit(0)

text = torch.tensor(list(load_breast_cancer().DESCR.encode()))  # a few pages, byte by byte

torch.manual_seed(0)
sizes = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
plain = GPT2LMHeadModel(config)  # with random weights: nothing is downloaded
model = copy.deepcopy(plain)

# In place: the same object and parameters, as an optimizer or a Trainer may have them already.
# The sketch is of what weight gradients need. `path=` is of all else on the way back from the
# loss: attention, norms, activation functions.
rad.convert(model, rad.StochasticRounding(4), path=rad.DitheredRounding(4), inplace=True)


def batch(step: int) -> dict[str, torch.Tensor]:
    """8 pieces of 64 bytes each, with themselves as labels."""
    starts = torch.randint(len(text) - 64, (8,), generator=torch.Generator().manual_seed(step))
    ids = torch.stack([text[i : i + 64] for i in starts])
    return {"input_ids": ids, "labels": ids}


for name, each in (("torch", plain), ("RAD", model)):
    saved = rad.memory.saved_bytes(lambda each=each: each(**batch(0)).loss)
    print(f"{name}: {saved:,} bytes saved for the backward pass")


def train(model: torch.nn.Module, steps: int = 31) -> list[float]:
    """The loss on the batch of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        loss = model(**batch(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print("step  torch     RAD")
for step, losses in enumerate(zip(train(plain), train(model), strict=True)):
    if step % 10 == 0:
        print("{:4d}  {:.4f}  {:.4f}".format(step, *losses))

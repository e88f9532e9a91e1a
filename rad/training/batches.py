"""Which training examples a batch holds."""

import hashlib

import torch
from torch import Tensor


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each pair of seed and purpose.

    The seeds are hashed, so that no stream repeats another's draws, nor those of a global
    generator that was given the same seed.
    """
    return torch.Generator(device).manual_seed(seed_of(seed, purpose))


def seed_of(seed: int, purpose: str) -> int:
    """The seed of that generator: 32 bits."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class Sampler:
    """Indices into a training set of `count` examples, drawn uniformly with replacement.

    They depend on seed, batch size and kind of device only. With `bootstrap` they point into a
    sample of the set, itself drawn with replacement; that sample is the same on every device.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, device: torch.device, bootstrap: bool = False
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.generator = stream(seed, "order", device)
        self.sample: Tensor | None = None
        if bootstrap:
            drawn = torch.randint(count, (count,), generator=stream(seed, "bootstrap"))
            self.sample = drawn.to(device)

    def draw(self) -> Tensor:
        """The next batch's indices (B,), int64, on the device."""
        indices = torch.randint(
            self.count,
            (self.batch_size,),
            generator=self.generator,
            device=self.generator.device,
        )
        return indices if self.sample is None else self.sample[indices]

    def multiplicities(self) -> Tensor | None:
        """How often the bootstrap sample holds each example (count,); None without one."""
        if self.sample is None:
            return None
        return torch.bincount(self.sample, minlength=self.count)

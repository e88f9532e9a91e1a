"""The adjoints that are compared on the PDE."""

import torch

from rad.benchmarks.pde_programs import adjoints_by_variant
from rad.pde import ReactionDiffusion
from rad.sketches import DifferentSample


def test_on_a_gpu_what_does_not_run_there_is_left_out() -> None:
    problem = ReactionDiffusion(points=9, steps=64, dt=0.001)
    variants = [{"name": "checkpointing"}, {"name": "different_sample"}]
    for device, expected in (("cpu", 3), ("cuda", 2)):
        adjoints = adjoints_by_variant(problem, 0.3, variants, torch.device(device))
        assert len(adjoints) == expected
        assert next(iter(adjoints)) == "exact"
        assert adjoints["different_sample"] == DifferentSample(0.3)

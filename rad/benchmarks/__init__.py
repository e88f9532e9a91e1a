"""What the benchmarks measure, and how they take turns."""

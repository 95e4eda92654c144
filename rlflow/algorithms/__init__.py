"""The maths: pure functions on plain values and tensors. Imports torch and nothing else."""

"""Benchmarks of this machine: training (`training`), generation (`generation`) and serving (`serving`) of a model."""

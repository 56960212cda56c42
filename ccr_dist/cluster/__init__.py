"""Experiments on a SLURM cluster, or on one machine: pipelines that survive preemption, time limits and dead nodes."""

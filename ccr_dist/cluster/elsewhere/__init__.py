"""Pipelines for schedulers other than SLURM: rendered as files, which the user hands to that scheduler's own commands.
Nothing here starts or watches anything.
"""

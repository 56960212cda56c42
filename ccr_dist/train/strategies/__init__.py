"""Ways to spread a training step over processes: one file each, behind the contract of `base.py`. `choose.py` says
which one runs.
"""

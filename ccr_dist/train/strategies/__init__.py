"""Ways to distribute a training step over processes: one file each, behind the contract in `base.py`. `choose.py`
decides which one runs.
"""

"""Long training jobs on machines that fail: what cannot be run, simulated; and how often to save.

`advise.advise` answers from closed forms (`closed`), `events.simulate` from an event model of a typed description
(`schema.Job`). Published failure rates lie in `rates/`, each figure with its source. NumPy only.
"""

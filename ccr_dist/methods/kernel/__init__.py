"""Kernel ridge regression from the vectors of a multilingual sentence encoder to a mix of English captions and pictures
in the shared space.

In closed form, by sums over all rows: the kernel is that of landmarks drawn from the training captions (Nyström). The
map bends where a linear one cannot, and the pictures in its target lead it past what English captions say. Sources:
Williams and Seeger, NeurIPS 2000; Rudi, Camoriano and Rosasco, NeurIPS 2015 (landmarks); the target is ours.
"""

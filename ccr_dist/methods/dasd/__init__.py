"""DASD: dynamic adapters with semantics disentangling (Cai et al., AAAI 2025; released code HuiGuanLab/DASD at
1bd165d).

A caption is represented by what it says (f_sr) and how it says it (f_sa). From both, a generator computes one r x r
core for the adapter of each layer, so the frozen tower is adapted to that caption. Stages CLA and CMA
(`crosslingual/`); in both a consistency loss ties f_sr to the semantic feature y (the English one in CLA, the picture's
in CMA) and an adversarial loss keeps semantics out of f_sa. Defaults are the published values.

Where this differs from the released code, and why:
- Branch networks: `characteristics: code` has none, as in the released code, where they exist but never run; `figure`
  has what the paper draws.
- f_sa is the mean over tokens; `positions: all` includes padding, as released, which reveals the caption's length.
- `discriminator: isolated`: only its own optimiser updates it; `released`: the main optimiser updates it as well, with
  weight decay and towards confusing itself, right after its own optimiser has trained it to distinguish pairs.
- `pairing: derangement` pairs captions with semantics of other captions by a random derangement of the global batch;
  `reversed`: by reversing the batch, as released, where the middle row may keep its own partner.
- `sr_start: normal` starts W_sr from N(0, 1/width); released: uninitialised memory, often `zeros`.
- The rest of the released recipe is the stage's: `optimizer: bert_adam`, `schedule: bert`, `clip: tensor`, and
  `decay_tables: true`, which lets a weight decay of 0.2 shrink the embeddings of all words that a batch lacks.
- `positives: group` counts other captions of the same item as right in the InfoNCE; `diagonal`: as released.
- `cma_semantics: english` keeps y the English feature in CMA; `visual`: as released, across the gap between the
  modalities.
- Validation selects, never test. The InfoNCE's scale is an option that is read (released: fixed at 100, the option
  ignored).
"""

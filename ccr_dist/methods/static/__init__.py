"""MLA (Zhang et al., NeurIPS 2022) and its relatives without anything generated: front end plus one static adapter a
layer and language.

`adapter` "bottleneck" is MLA's (hidden 256: 3,154,944 parameters a language at width 512 and 12 layers). With `hidden:
32` it is the parameter-matched baseline of DASD (399,744): a learned core between Down and Up is a product with Down.
"core" keeps that core apart, as DASD without its generator has it; "none" is the linear-only row, front end and frozen
tower. MLA's optimiser is the stage's to name: `optimizer: bert_adam`, `schedule: bert`, `clip: tensor`, `decay_tables:
true`.
"""

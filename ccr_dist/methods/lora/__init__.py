"""LoRA (Hu et al., ICLR 2022) on the attention of the frozen text tower, per language: a baseline for adapters behind
the blocks.

Front end, stages and losses are those of MLA and DASD (`crosslingual/`). Rank 8 on query, key, value and output
projection has 393,216 parameters a language at width 512 and 12 layers, which matches DASD's Down and Up (399,744); on
query and value alone 196,608. The low-rank matrices and their start are peft's; at the start the tower is the frozen
one.
"""

"""NRCCR: noise-robust learning from machine translations (Wang et al., ACM MM 2022; released code LiJiaBei-7/nrccr),
LECCR's predecessor.

A multilingual text encoder and a head on frozen visual features meet in a common space. Triplets with the hardest
negative of the batch draw captions, translations and pictures together, and captions and their back-translations; a
text feature in which the English caption has read the translation (the teacher) is distilled into the translation's, in
its similarities with pictures and in itself; a discriminator of languages is to find nothing in the encoder's states.
At test time the score of a query is fused with that of its machine translation into English (`fusion`): the published
numbers are with it, those of LECCR and DASD are without.

Defaults are the published values for images; videos: `visual: frames`, `train_from: 5`. From the released code, since
the description of the method leaves it open: the teacher is the mean over the English tokens after reading (the
attention layer is the text path's own, without its residual) and over the embedded target tokens; similarities are
distilled in both directions, half each; the feature term's gradient reaches the teacher, too, which learns by nothing
else; the triplets are summed over the batch, everything else is a mean.

Where this differs from the released code, and why:
- Batch normalisation uses the statistics of the global batch; `norm: layer` needs none. Its running statistics are in
  the checkpoint.
- The similarity teacher is constant in its visual half, too; released: only in its textual half.
- `pooling: tokens` is a mean over tokens, of what reads tokens alone; `all`: over all `max_tokens` positions, of which
  those of padding read every position, as released (but for the length: released, that of the longest caption of the
  batch, so that a caption's feature depends on its neighbours). `padding_reads: tokens` is what runs of earlier
  versions did with `all`. Frames are always a mean over frames that read frames (released: padding likewise).
- `positives: group` takes no other caption of the same item for a negative; `diagonal`: as released.
- The discriminator tells two languages apart by two logits, one each; released: both logits say the same.
- Queries, keys and values have the full width (released: queries and keys 512). Captions go to the cased tokeniser as
  they are; released: lower-cased without accents in all languages, and English gets a full stop.
- Validation scores like the test (released: with another weight, 0.2), and a schedule over steps takes the place of
  0.99 an epoch and 0.5 on a plateau.
"""

"""Fusion: a query and its machine translation into English are both asked of a trained model, and their scores are
averaged with the weight that validation likes best.

For those who have machine translation at query time. `of` is the method that was trained, `init_from` its run or model;
nothing is trained here. The score of a text with an item is

    (1 - w) * score of the query in its language + w * score of its translation, asked in English

w = 0 is the trained method; w = 1 is translate-test wherever that method leaves English to the backbone. One w serves
all languages. Where the score of `of` has several parts, each of them is averaged so, and its own candidates of fusion
are tried with every w. An English query is its own translation.
"""

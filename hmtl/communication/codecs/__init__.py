"""Codecs: how numbers become bytes, and what is kept of what rounding leaves over. They know no node and no round.

A message names the format of its rows (`formats`), and so the codec that made them:
    `plain`: floats as they are, or as a narrower type; nothing is kept;
    `blocks`: IVs and models in few bits, with the rest at the coder of the users (`held`);
    `words`: terms and sums as integers of 64 bits, which are exact;
    `few_bit_words`: terms and sums in few bits, with the rest at the coder of the users (`owed`).

`wires` says which of them the setting `wire` chooses, `rows` turns rows of numbers into bytes, and loops are compiled.
"""

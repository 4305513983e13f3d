"""Codecs: how numbers become bytes, and what is kept of what rounding leaves over. They know no node and no round.

Each row has a format, which a message names; it says which codec made the row:

| module | what it codes | formats | what rounding leaves over |
|---|---|---|---|
| `plain` | floats, as they are or narrower | `float64`, `float32`, `float16`, `bfloat16` | is lost |
| `few_bit_blocks` | IVs and models in few bits | `blocks8`, `blocks4`, `blocks3`, `blocks2`, `own` | `held` of users |
| `words` | terms and sums, as they are | `int64` | nothing |
| `few_bit_words` | terms and sums in few bits | `int8`, `int4`, `int3`, `int2` | `errors` of users |

`wires` says what the setting `wire` may be, `formats` lists the formats, `rows` turns numbers into bytes, and
`block_loops` and `word_loops` are compiled.
"""

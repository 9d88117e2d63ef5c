"""The run directory: its schema, and how it is written, found and read back.

Knows neither torch nor anybody above it. A rank writes through `writer` and `heartbeat`, the
launcher through `store`, and all judgement reads through `reader`.
"""

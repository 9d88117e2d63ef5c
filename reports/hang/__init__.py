"""Why a run stands still: from `HangEvidence` to a Verdict, by pure functions.

`verdict.judge` asks the patterns in turn (patterns/, one file each); the first that holds names
the code, the culprits and the line. Culprits come from a majority or from the graph of who waits
for whom, never from the order in which anything was read.
"""

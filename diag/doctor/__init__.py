"""Is this machine fit to train? Facts are collected first, then judged by pure functions.

`collect.collect` reads the sources, each by itself and with a time limit; `checks.judge`
turns the facts into checks; `render` turns checks into text or JSON. Nothing here imports
torch: what only torch can tell is asked in a child process.
"""

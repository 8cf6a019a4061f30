"""What a network, its input, its training and its evaluation cost; run by scripts/benchmark.py.

One module per measurement: `input`, `training`, `evaluating`, `models`. Each contender runs in its
own process (`workers`), all of them interleaved (`rounds`), and the results become rows of a table
(`records`).
"""

"""Experiments that papers on ECG encoders ask for, each a command that ends in a table with intervals and baselines."""

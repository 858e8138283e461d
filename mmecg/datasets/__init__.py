"""Readers and writers of ECG data: WFDB, PTB-XL, MIMIC-IV-ECG, NumPy, Parquet, and a synthetic generator.

This is the only place that imports the wfdb package.
"""

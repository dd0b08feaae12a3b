"""
Batch mode: quality metrics of predictions that are in files.
"""

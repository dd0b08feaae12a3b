"""
Labels that come late: what is kept of a prediction until its label comes, by which rules they join, and where.

Reads down: `outcomes` has the words, `entries` the rules, `cohorts` counts, `memory`, `sqlite` and `redis` keep.
A store knows ids and bytes; what the bytes mean is the business of `packing.py`, one floor up.
"""

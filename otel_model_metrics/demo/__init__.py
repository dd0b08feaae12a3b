"""
The demonstration: real models served, degraded half-way, monitored, and shown from what was received over OTLP.

Needs the extra `demo`. Reads down: `models` serve and record, `receiver` receives, `view` draws, `run` joins them.
"""

"""``python -m otel_model_metrics``: the command line."""

from otel_model_metrics.cli import main

if __name__ == "__main__":
    main()

"""What every process of the node needs: logs, signals, readiness, retries, timings."""

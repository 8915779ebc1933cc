"""How the node runs and is run: processes, logs, retries, the administrator's tools."""

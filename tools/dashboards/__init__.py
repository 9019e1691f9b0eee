"""The Grafana dashboards, as code: `python -m tools.dashboards.build` writes their JSON."""

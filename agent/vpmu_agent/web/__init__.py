"""Serves the metrics, the page and its JSON over HTTP, with TLS and users if a web file asks for them."""

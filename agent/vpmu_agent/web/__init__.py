"""What is served over HTTP: metrics, the page, its JSON, and who may have them."""

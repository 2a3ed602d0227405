"""What runs beside the product: the bank sandbox, the demo scenarios, deployment files."""

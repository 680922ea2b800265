"""A run shared out among ranks or on a Ray cluster."""

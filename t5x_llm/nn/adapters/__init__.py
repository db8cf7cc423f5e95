"""Small trained parts beside a frozen model."""

"""Documents out of files of many formats; what cannot be read is quarantined with its reason."""

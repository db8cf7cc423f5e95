"""Federated fine-tuning of adapters: parties train on their own data, a server averages."""
